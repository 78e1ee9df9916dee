"""Options of low-rank adapters: their place, size and start."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from depthcut.cut.plan import Plan
from depthcut.cut.spans import layer_spans
from depthcut.heal.training.recipe import Positive, Share, TrainingRecipe
from depthcut.heal.training.warm_start import WarmStart
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import Rank, strict

if TYPE_CHECKING:
    from depthcut.heal import Workspace


@strict
class LowRankRecipe(TrainingRecipe):
    """Options of low-rank adapters on frozen weights: their place and size.

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r.
        dropout: dropout on the adapters' input.
        modules: the linear layers of each decoder layer that get an adapter.
        layers: the decoder layers that get adapters: all that are left, or those after the first gap. The prefix before
            the gap is then still the dense model's: no gradient goes there, and models with different cuts share it.
    """

    rank: Rank
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share
    modules: Literal["ffn", "attention", "all"]
    layers: Literal["all", "after_cut"]
    leaves: ClassVar[str] = "adapter"

    @property
    def adapter_dropout(self) -> float:
        """Dropout on the input of adapters."""
        return self.dropout

    @override
    def cut_options(self) -> dict[str, Any]:
        return {} if self.layers == "all" else {"layers": self.layers}

    def reached(self, plan: Plan, left: int) -> Sequence[int]:
        """Return which of the ``left`` layers of the pruned model get adapters; without a gap, none is after it."""
        return range(left) if self.layers == "all" else range(min(plan.drop, default=left), left)

    def origin(self, workspace: "Workspace") -> WarmStart | None:
        """Return the point whose adapters these start from, or None for a fresh start."""
        del workspace
        return None


@strict
class AdapterRecipe(LowRankRecipe):
    """Adapters that may sit only next to the gaps, and may start from those of another cut.

    Attributes:
        layers: also ``around_cut``: the layers next to each gap, and its filling.
        reach: for ``around_cut``, number of layers on each side of a gap.
        init_from: the folder of a point of this model, or a prefix of its digest: layers that both cuts keep start from
            its adapters, by their number in the dense model, the others fresh. None: all start fresh.
    """

    layers: Literal["all", "after_cut", "around_cut"]  # pyright: ignore[reportIncompatibleVariableOverride]
    reach: Positive
    init_from: PathText | None
    incidental: ClassVar[frozenset[str]] = frozenset({"reach", "init_from"})

    @override
    def cut_options(self) -> dict[str, Any]:
        return super().cut_options() | ({} if self.init_from is None else {"init_from": self.init_from})

    @override
    def reached(self, plan: Plan, left: int) -> Sequence[int]:
        return (
            layers_around_gaps(plan, left, self.reach) if self.layers == "around_cut" else super().reached(plan, left)
        )

    @override
    def origin(self, workspace: "Workspace") -> WarmStart | None:
        return WarmStart.found(self.init_from, workspace) if self.init_from is not None else None

    def content(self, workspace: "Workspace") -> Any:
        """Return the options that are in the digest only if used: the reach, and the adapters that these start from.

        Raises:
            UserError: if these adapters are missing or do not fit.
        """
        content: dict[str, Any] = {"reach": self.reach} if self.layers == "around_cut" else {}
        content |= super().content(workspace) or {}
        if origin := self.origin(workspace):
            content["init_from"] = origin.content
        return content or None


def layers_around_gaps(plan: Plan, left: int, reach: int) -> list[int]:
    """Return the layers of a pruned model within ``reach`` of its gaps, and the gaps' fillings."""
    gaps = layer_spans(plan.drop)
    moved = 0  # offset between a layer's new and old number
    found: set[int] = set()
    for start, stop in gaps:
        filled = stop - start if left == plan.depth else (left - len(plan.keep)) // len(gaps)
        found.update(range(start + moved - reach, start + moved + filled + reach))
        moved += filled - (stop - start)
    return sorted(found & set(range(left)))
