"""Evaluations: a model in, named numbers out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from depthcut.cut.plan import Unit
from depthcut.cut.subnetworks import FULL, Subnetwork
from depthcut.runtime.strict import Method, method_fields, strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.parts import Texts
    from depthcut.data.text.tokens import Tokens
    from depthcut.model.surgery.sizes import ModelSize
    from depthcut.runtime.numbers import Numbers


Subnetworks = Sequence[Subnetwork]
FULL_ONLY: Subnetworks = (FULL,)
"""The uncut model alone."""


class Bench(Protocol):
    """The run that a model is measured in.

    Attributes:
        device: ``cpu`` or ``cuda``.
        asked_device: device as the config names it; known without torch.
        dense: the dense model, for its sizes.
        texts: texts of the run.
        cache: folder shared by all runs.
        tokenizer: tokenizer of the model.
        separator: token between documents; None: the tokenizer's end-of-text token.
        numbers: receives the peak memory.
    """

    @property
    def device(self) -> str: ...

    @property
    def asked_device(self) -> str: ...

    @property
    def dense(self) -> "SizedModel": ...

    @property
    def texts(self) -> "Texts": ...

    @property
    def cache(self) -> Path: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def separator(self) -> str | None: ...

    @property
    def numbers(self) -> "Numbers": ...

    def other_texts(self) -> "dict[str, Callable[[], Tokens]]":
        """Return the parts of the data that choose the layers or train the model, by name."""
        ...


class SizedModel(Protocol):
    """A model of known sizes."""

    def sizes(self, unit: Unit, /) -> "ModelSize":
        """Return the sizes of the model and of its units."""
        ...


@strict
class Eval(Method, ABC):
    """Base class of evaluations. A number that could not be measured has no key.

    Attributes:
        needs_whole: requires the whole model on one GPU, because a sharded model is gathered layer by layer, which
            takes time.
        needs_shared_layers: applies to models with shared layers only.
        sample: options that bound the sample size, such as ``limit``.
    """

    needs_whole: ClassVar[bool] = False
    needs_shared_layers: ClassVar[bool] = False
    sample: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def __call__(
        self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY
    ) -> list[dict[str, float]] | None:
        """Measure each of the ``cuts`` of ``model`` in shared passes; the numbers equal those of each cut alone.

        Args:
            model: the dense model with the adapters of the cuts, if any; without cuts, any model.
            bench: the run that the model is measured in.
            cuts: the sub-networks.

        Returns:
            For each cut, numbers under flat names such as ``arc_easy/acc``, with ``_stderr`` where it is known; None if
            a cut can only be measured once it is made.
        """

    @abstractmethod
    def reads(self, bench: "Bench") -> Any:
        """Return all inputs except the model, by content, as JSON; they are part of the cache key of the numbers."""

    def check(self) -> None:
        """Check options that need no model, before the point begins.

        Raises:
            UserError: if something named in an option does not exist.
        """

    @abstractmethod
    def prepare(self, bench: "Bench") -> None:
        """Fetch and check all inputs except the texts, before any weight is loaded.

        Raises:
            UserError: if an input is unavailable.
        """

    def lengths(self, bench: "Bench") -> dict[str, int]:
        """Return the options that are lengths in tokens, each with the number of tokens added to its sequences."""
        del bench
        return {}

    def settings(self, bench: "Bench") -> dict[str, Any]:
        """Return the options that the numbers depend on; they distinguish evaluations that report the same names."""
        del bench
        return {key: value for key, value in method_fields(self).items() if key != "class"}

    def digested(self) -> dict[str, Any]:
        """Return options that enter the digest in another form than given, such as files without their folders."""
        return {}

    def parts(self) -> "tuple[Eval, ...]":
        """Return the parts that are measured and cached separately; a new task then repeats no other task."""
        return (self,)
