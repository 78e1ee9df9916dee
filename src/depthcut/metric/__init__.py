"""Metrics score layers or blocks of layers; the lowest score is dropped first."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.runtime.strict import Method, strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.data.text.tokens import Tokens
    from depthcut.model.decoder.dense import Dense
    from depthcut.model.decoder.measurement import Measurement

DropSets = Sequence[tuple[int, ...]]
WinShare = Annotated[float | None, Field(gt=0.5, lt=1)]


class Subject(Protocol):
    """The model and the text that a metric scores.

    Attributes:
        dense: the dense model.
        texts: the run's texts.
        cache: the folder that all runs share.
        tokenizer: the model's tokenizer.
    """

    @property
    def dense(self) -> "Dense": ...

    @property
    def texts(self) -> "CalibrationText": ...

    @property
    def cache(self) -> Path: ...

    @property
    def tokenizer(self) -> Any: ...

    def wanted(self) -> tuple[range, int]:
        """Return the possible starts of the block to drop, and its size, for a metric that stops early."""
        ...


class CalibrationText(Protocol):
    """The text that metrics read."""

    def identity(self, part: Literal["calibration"], /) -> Any:
        """Return the content of the text as JSON, without reading it."""
        ...

    def calibration(self) -> "Tokens":
        """Return the text, tokenised."""
        ...


@strict
class Metric(Method, ABC):
    """Scores the layers of the dense model.

    Attributes:
        reads_text: whether it reads the calibration text.
        bases: the values of ``model.quantise`` that it supports.
        units: the values of ``prune.unit`` that it supports; ``("layer",)`` if it ignores ``unit``.
        rescores: whether it can score the remaining units after a removal.
        searches: whether it gives the value of any sub-network, as a search needs: :class:`RemovalMetric`.
        streams: whether it reads a model that does not fit, from ``dense.stream()``, while ``dense.streaming``.
    """

    reads_text: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    units: ClassVar[tuple[Unit, ...]] = ("layer", "attention", "mlp")
    rescores: ClassVar[bool] = False
    searches: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    @property
    def stops_early(self) -> bool:
        """Whether it stops reading once the block to drop is certain."""
        return False

    def reads(self, subject: "Subject") -> Any:
        """Return the inputs other than the model, by content, as JSON."""
        return subject.texts.identity("calibration") if self.reads_text else None

    def prepare(self, subject: "Subject", unit: Unit) -> None:
        """Fetch and check the inputs other than the calibration text, before a weight is loaded."""
        del subject, unit

    @abstractmethod
    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score the layers of ``subject.dense`` on ``subject.texts.calibration()``; leave the model unchanged.

        Args:
            subject: the model and the text.
            removed: units already removed; the remaining ones are numbered from 0. Empty unless ``rescores``.
            unit: the unit to score: whole layers, or only their attentions or MLPs.
        """


@strict
class BlockMetric(Metric):
    """A metric that compares the hidden states on both sides of each block, token by token.

    Attributes:
        batch: sequences per forward pass.
        until: stop reading when the block of ``prune=block`` wins this share of bootstrap draws; None reads all text.
    """

    batch: Annotated[int, Field(gt=0)]
    until: WinShare
    rescores: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    @property
    def stops_early(self) -> bool:
        """Whether it stops reading once the block to drop is certain."""
        return self.until is not None

    @property
    def compared_tokens(self) -> Literal["last", "all"]:
        """Which tokens of each sample are compared."""
        return "all"

    @abstractmethod
    def compare(self, states_NED: "Tensor") -> "Tensor":
        """Return a value for each pair of edges, N x E x E, given the states of N tokens at E edges, in float64."""

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score all blocks in one pass."""
        from depthcut.metric.passes import block_scores
        from depthcut.metric.passes.hidden_states import HiddenStates

        states = HiddenStates(
            subject=subject,
            name=self.word,
            batch=self.batch,
            token=self.compared_tokens,
            removed=removed,
            unit=unit,
            until=self.until,
        )
        return block_scores.score_blocks(states, self.compare)


@strict
class RemovalMetric(Metric):
    """A metric that runs the model without a layer, or without any set of layers.

    Attributes:
        batch: sequences per forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    rescores: ClassVar[bool] = True
    searches: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    @abstractmethod
    def reading(self, subject: "Subject", samples: int | None) -> "Measurement":
        """Return the measurement on the first ``samples`` of the available samples, or on all of them."""

    def without(self, subject: "Subject", drops: DropSets, unit: Unit, samples: int | None = None) -> list[float]:
        """Return the value of the model without each set of units; lower is better."""
        import torch

        from depthcut.model.decoder import shared_prefix

        reading = self.reading(subject, samples)
        sums_KN, count_N = shared_prefix.measure_subnetworks(subject.dense, drops, unit, reading)
        return reading.aggregate(sums_KN, count_N, torch.ones(len(count_N)))[0].tolist()

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score single units, all candidates in one pass."""
        import torch

        from depthcut.cut import scores
        from depthcut.model.decoder import shared_prefix

        left = [layer for layer in range(subject.dense.depth) if layer not in removed]
        reading = self.reading(subject, None)
        sums_LN, count_N = shared_prefix.measure_subnetworks(
            subject.dense, [(*removed, layer) for layer in left], unit, reading
        )
        value_L, stderr_L = reading.aggregate(sums_LN, count_N, torch.ones(len(count_N)))
        draws = [
            reading.aggregate(sums_LN, count_N, torch.from_numpy(w))[0] for w in scores.bootstrap_weights(len(count_N))
        ]
        draws_RL = torch.stack(draws).double().numpy()
        return Scores.of_layers(value_L.tolist(), stderr_L.tolist(), len(count_N), draws=draws_RL)
