"""Pruners choose the layers or sublayers to drop, given their scores and the size of the cut."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, get_args

from pydantic import Field

from depthcut.cut.plan import UNIT_NOUNS, Plan, Unit
from depthcut.cut.scores import Scores
from depthcut.model.surgery.sizes import ModelSize, Quantity
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import Method, strict

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint


class ScoreFunction(Protocol):
    """Runs the metric, which is expensive. Units are those of the pruner: layers, or their attentions or MLPs."""

    def __call__(self, removed: tuple[int, ...] = ()) -> Scores:
        """Return the scores of the model without the units ``removed``; the remaining units are numbered from 0."""
        ...

    def without(self, drops: Sequence[tuple[int, ...]], samples: int | None = None) -> list[float]:
        """Return the value of the model without each of these sets of units; lower is better.

        Args:
            drops: the sets, numbered as in the whole model.
            samples: number of calibration sequences to read, from the first; None reads all.
        """
        ...


@strict
class Prune(Method, ABC):
    """Chooses a plan.

    Attributes:
        reads_scores: whether the plan depends on the metric.
        rescores: whether it asks the metric to score the remaining units after a removal.
        searches: whether it asks the metric for the value of whole sets.
    """

    reads_scores: ClassVar[bool]
    rescores: ClassVar[bool] = False
    searches: ClassVar[bool] = False

    if TYPE_CHECKING:  # an option of most pruners, but read from the file by prune=plan: no field here

        @property
        def unit(self) -> Unit:
            """The unit to drop: layers, or only their attentions or MLPs."""
            ...

    @property
    def needs_weights(self) -> bool:
        """True if the shape must include the units' sizes; otherwise ``ModelSize(depth)`` is enough."""
        return False

    def check(self, checkpoint: "Checkpoint") -> None:
        """Refuse a model that this pruner was not made for, before reading anything else of it.

        Raises:
            UserError: if the model does not fit.
        """
        del checkpoint

    @abstractmethod
    def count(self, shape: ModelSize) -> int:
        """Return the number of units to drop.

        Raises:
            UserError: if too few would stay, or the budget cannot be met.
        """

    @abstractmethod
    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the units to drop."""

    def content(self) -> Any:
        """Return the inputs other than the options, by content, as JSON."""
        return None


@strict
class SizedPrune(Prune):
    """A pruner with a size of the cut: a fraction, a number of units, or a budget for the pruned model.

    At most one of ``layers`` and the three budgets is set; it overrides ``frac``.

    Attributes:
        frac: fraction of the units to drop, in [0, 1), rounded to the nearest whole unit.
        layers: number of units to drop.
        parameters: maximum number of parameters in the pruned model as a whole.
        weight_bytes: maximum bytes of weights in the pruned model, quantised as in the run.
        cache_bytes: maximum bytes of KV cache per token in the pruned model.
        unit: the unit to drop: layers, or only their attentions or MLPs.
        keep_first: number of first layers that must stay whole.
        keep_last: number of last layers that must stay whole.
    """

    frac: Annotated[float, Field(ge=0, lt=1)]
    layers: Annotated[int | None, Field(ge=0)]
    parameters: Annotated[float | None, Field(gt=0)]
    weight_bytes: Annotated[float | None, Field(gt=0)]
    cache_bytes: Annotated[float | None, Field(gt=0)]
    unit: Unit  # pyright: ignore[reportIncompatibleMethodOverride]
    keep_first: Annotated[int, Field(ge=0)]
    keep_last: Annotated[int, Field(ge=0)]
    # The point's digest holds the resulting number of units instead.
    incidental: ClassVar[frozenset[str]] = frozenset({"frac", "layers", *get_args(Quantity)})

    def __post_init__(self) -> None:
        given = [name for name in ("layers", *get_args(Quantity)) if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"prune.{given[0]} and prune.{given[1]} are both set; set only one")

    @property
    def budget(self) -> Quantity | None:
        """The one of the three budgets that is set, or None."""
        return next((name for name in get_args(Quantity) if getattr(self, name) is not None), None)

    @property
    def needs_weights(self) -> bool:
        """True if a budget is set."""
        return self.budget is not None

    def free(self, depth: int) -> range:
        """Return the layers that may be dropped or lose a sublayer."""
        return range(self.keep_first, depth - self.keep_last)

    def most(self, depth: int) -> int:
        """Return the maximum number of ``depth`` units to drop; at least one stays."""
        return max(0, min(len(self.free(depth)), depth - 1))

    def count(self, shape: ModelSize) -> int:
        """Return the number of units to drop.

        For a budget and units of different sizes, this is the smallest n for which any n units that may go are enough:
        even the n lightest weigh at least as much as must go. A cut chosen later thus always meets the budget, and may
        leave less than it allows.

        Raises:
            UserError: if no unit would stay, or fewer than must stay, or the budget cannot be met.
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
        units, whole, wanted = shape.per_unit(quantity), shape.total[quantity], getattr(self, quantity)
        assert len(units) == shape.depth
        lightest = sorted(units[layer] for layer in self.free(shape.depth))[: self.most(shape.depth)]
        for n in range(len(lightest) + 1):
            if whole - sum(lightest[:n]) <= wanted:
                return n
        least = whole - sum(lightest)
        mend = ", or lower prune.keep_first or prune.keep_last" if self.keep_first or self.keep_last else ""
        raise UserError(
            f"prune.{quantity}={wanted:.15g} cannot be met: {whole} in total, {least} without "
            f"{len(lightest)} of {shape.depth} {UNIT_NOUNS[self.unit]}; {self._must}. Set at least {least}{mend}"
        )

    @property
    def _must(self) -> str:
        """The layers that must stay, in words."""
        ends = [("first", self.keep_first), ("last", self.keep_last)]
        named = [f"the {end} {count}" if count > 1 else f"the {end}" for end, count in ends if count]
        if not named:
            return "at least one must stay"
        plural = "s" if max(self.keep_first, self.keep_last) > 1 else ""
        return f"{' and '.join(named)} layer{plural} must stay"
