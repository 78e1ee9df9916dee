"""Pruners: which layers, or halves of layers, go, given what they are worth and how many are to go."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, get_args

from pydantic import Field

from depthcut.cut.plan import UNIT_NOUNS, Plan, Unit
from depthcut.cut.scores import Scores
from depthcut.model.surgery.sizes import ModelSize, Quantity
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint


class ScoreFunction(Protocol):
    """Runs the metric, at a price. Units are of the pruner's kind: layers, or their attentions or MLPs."""

    def __call__(self, removed: tuple[int, ...] = ()) -> Scores:
        """The scores of the model without the units ``removed``; what is left is numbered from 0."""
        ...

    def without(self, drops: Sequence[tuple[int, ...]], samples: int | None = None) -> list[float]:
        """The value, lower is better, of the model without each of these sets of units.

        Args:
            drops: the sets, numbered as in the whole model.
            samples: read only so many of the calibration sequences, the first; None: all.
        """
        ...


@strict
class Prune(ABC):
    """Decides on a plan.

    Attributes:
        reads_scores: whether the plan depends on the metric at all.
        rescores: whether it asks the metric again about what is left after a removal.
        searches: whether it asks the metric for the value of whole sets.
    """

    reads_scores: ClassVar[bool]
    rescores: ClassVar[bool] = False
    searches: ClassVar[bool] = False

    if TYPE_CHECKING:  # a knob of most pruners, and out of the file in the one that reads it: no field of this class

        @property
        def unit(self) -> Unit:
            """What goes: layers, or only their attentions or MLPs."""
            ...

    @property
    def needs_weights(self) -> bool:
        """Whether the shape must say what the units weigh; else ``Shape(depth)`` will do."""
        return False

    def check(self, checkpoint: "Checkpoint") -> None:
        """Refuse a model that this pruner was not made for, before anything else is read of it.

        Raises:
            UserError: in that case.
        """
        del checkpoint

    @abstractmethod
    def count(self, shape: ModelSize) -> int:
        """How many units of a model go.

        Raises:
            UserError: if too few would stay, or the budget cannot be met.
        """

    @abstractmethod
    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the units that go."""

    def content(self) -> Any:
        """What it reads beside its knobs, by content, as JSON."""
        return None


@strict
class SizedPrune(Prune):
    """A pruner that is told how much to cut: a share, a number, or a budget for what is left.

    Of ``layers`` and the three budgets at most one is set, and it then wins over ``frac``.

    Attributes:
        frac: share of the units to drop, in [0, 1), rounded to the nearest whole unit.
        layers: number of units to drop.
        parameters: at most so many are left in the whole model.
        weight_bytes: at most so many bytes of weights are left, quantised as the run does it.
        cache_bytes: at most so many bytes of KV cache a token are left.
        unit: what goes: layers, or only their attentions or MLPs.
        keep_first: the first layers that must stay whole.
        keep_last: the last layers that must stay whole.
    """

    frac: Annotated[float, Field(ge=0, lt=1)]
    layers: Annotated[int | None, Field(ge=0)]
    parameters: Annotated[float | None, Field(gt=0)]
    weight_bytes: Annotated[float | None, Field(gt=0)]
    cache_bytes: Annotated[float | None, Field(gt=0)]
    unit: Unit  # pyright: ignore[reportIncompatibleMethodOverride]
    keep_first: Annotated[int, Field(ge=0)]
    keep_last: Annotated[int, Field(ge=0)]
    # The number of units that they come to is in the point's digest.
    incidental: ClassVar[frozenset[str]] = frozenset({"frac", "layers", *get_args(Quantity)})

    def __post_init__(self) -> None:
        given = [name for name in ("layers", *get_args(Quantity)) if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"prune.{given[0]} and prune.{given[1]} are both set; give one size of the cut")

    @property
    def budget(self) -> Quantity | None:
        """The one of the three budgets that is set."""
        return next((name for name in get_args(Quantity) if getattr(self, name) is not None), None)

    @property
    def needs_weights(self) -> bool:
        """Whether there is a budget."""
        return self.budget is not None

    def free(self, depth: int) -> range:
        """The layers that may go, or lose a half."""
        return range(self.keep_first, depth - self.keep_last)

    def most(self, depth: int) -> int:
        """How many of ``depth`` units may go at most: one stays in any case."""
        return max(0, min(len(self.free(depth)), depth - 1))

    def count(self, shape: ModelSize) -> int:
        """How many units of a model go.

        With a budget and units that weigh differently this is the smallest n of which any n units that may go are
        enough: the n lightest of them weigh at least what must go. A cut chosen later thus meets the budget for sure,
        and may leave less than that.

        Raises:
            UserError: if no unit would stay, or fewer than the ones that must, or the budget cannot be met.
        """
        if self.budget:
            return self._within(shape, self.budget)
        depth, most = shape.depth, self.most(shape.depth)
        n = math.floor(self.frac * depth + 0.5) if self.layers is None else self.layers
        if n > most:
            highest = math.floor((most + 0.49) / depth * 100) / 100
            now = f"frac (now {self.frac:g}; at most {highest:g} here)"
            if self.layers is not None:
                now = f"layers (now {n}; at most {most} here)"
            kept = max(0, depth - n)
            raise UserError(f"plan keeps {kept} of {depth} {UNIT_NOUNS[self.unit]}; {self._must}. Lower prune.{now}")
        return n

    def _within(self, shape: ModelSize, quantity: Quantity) -> int:
        """The number of units for a budget."""
        units, whole, wanted = shape.per_unit(quantity), shape.total[quantity], getattr(self, quantity)
        assert len(units) == shape.depth
        lightest = sorted(units[layer] for layer in self.free(shape.depth))[: self.most(shape.depth)]
        for n in range(len(lightest) + 1):
            if whole - sum(lightest[:n]) <= wanted:
                return n
        least = whole - sum(lightest)
        mend = (
            ", or let more layers go (prune.keep_first, prune.keep_last)" if self.keep_first or self.keep_last else ""
        )
        raise UserError(
            f"prune.{quantity}={wanted:.15g} cannot be met: {whole} in all, and {least} still without "
            f"{len(lightest)} of {shape.depth} {UNIT_NOUNS[self.unit]}; {self._must}. Set at least {least}{mend}"
        )

    @property
    def _must(self) -> str:
        """What must stay, in words."""
        ends = [("first", self.keep_first), ("last", self.keep_last)]
        named = [f"the {end} {count}" if count > 1 else f"the {end}" for end, count in ends if count]
        if not named:
            return "at least one must stay"
        plural = "s" if max(self.keep_first, self.keep_last) > 1 else ""
        return f"{' and '.join(named)} layer{plural} must stay"
