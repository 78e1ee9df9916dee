"""LoRAPrune: heads and FFN channels go while LoRA heals, by the adapters' gradients alone (arXiv:2305.18403)."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.training.recipe import LowRankRecipe, Positive, Share
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace
    from depthcut.model.surgery.sizes import SizeName


@strict
class LoraPrune(LowRankRecipe, Heal):
    """Low-rank adapters that also tell which groups of weights are worth least; these go little by little.

    Attributes:
        layers: the criterion sees only what has adapters.
        strategy: it needs whole gradients.
        ratio: share of the groups of each kind that goes, in the layers that are narrowed.
        frac: None, or in place of the ratio: as many parameters go as in a cut of this share of the layers, or, as
            groups are whole, a few more.
        selection: ``uniform``: so many in each layer, as published; ``global``: the least of all layers.
        prune_every: steps between two choices of the groups, while the share grows.
        smoothing: lambda of the moving average of what groups are worth.
        keep_first: share of the layers, the first ones, that stay as wide as they are, rounded down.
        keep_last: the last layers that do.
    """

    layers: Literal["all"]  # pyright: ignore[reportIncompatibleVariableOverride]
    strategy: Literal["ddp"]  # pyright: ignore[reportIncompatibleVariableOverride]
    ratio: Share
    frac: Annotated[float | None, Field(ge=0, lt=1)]
    selection: Literal["uniform", "global"]
    prune_every: Positive
    smoothing: Share
    keep_first: Share
    keep_last: Annotated[int, Field(ge=0)]
    trains: ClassVar[bool] = True
    needs_plain_layers: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    incidental: ClassVar[frozenset[str]] = frozenset({"frac"})

    def free(self, left: int) -> range:
        """Which of the ``left`` layers of the model are narrowed.

        Raises:
            UserError: if none is.
        """
        found = range(int(self.keep_first * left), left - self.keep_last)
        if not found:
            raise UserError(
                f"heal=loraprune: of {left} layers none is left to narrow; lower heal.keep_first "
                f"({self.keep_first:g} of the layers) or heal.keep_last ({self.keep_last})"
            )
        return found

    def content(self, workspace: "Workspace") -> Any:
        """Return what others of its kind have besides the options; the share of the layers, where that is set."""
        if self.frac is None:
            return super().content(workspace)
        return {"frac": self.frac, **(super().content(workspace) or {})}

    @override
    def prepare(self, workspace: "Workspace") -> None:
        from depthcut.heal.width import matched

        super().prepare(workspace)
        matched.check_narrowable(self, workspace)

    def sizes(self, workspace: "Workspace", plan: Plan) -> "dict[SizeName, int] | None":
        """What the healed model weighs and costs, sliced; None where it is not healed yet."""
        from depthcut.heal.width import healing

        return healing.healed_sizes(workspace, plan)

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train and narrow the model, or attach and narrow what an earlier run left."""
        from depthcut.heal.width import healing

        return healing.train_pruned(model, plan, workspace, self)
