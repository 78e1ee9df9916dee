"""LoRAPrune: removes heads and FFN channels while LoRA heals, by the adapters' gradients alone (arXiv:2305.18403)."""

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.width.recipe import WidthRecipe
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Sizes, Workspace


@strict
class LoraPrune(WidthRecipe, Heal):
    """Low-rank adapters that also rank groups of weights; the lowest are removed gradually (:class:`WidthRecipe`)."""

    trains: ClassVar[bool] = True
    needs_plain_layers: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    incidental: ClassVar[frozenset[str]] = frozenset({"frac"})

    def content(self, workspace: "Workspace") -> Any:
        """Return the inputs other than the options, and ``frac`` if it is set."""
        if self.frac is None:
            return super().content(workspace)
        return {"frac": self.frac, **(super().content(workspace) or {})}

    @override
    def prepare(self, workspace: "Workspace") -> None:
        from depthcut.heal.width import matched

        super().prepare(workspace)
        matched.check_narrowable(self, workspace)

    @override
    def cut_options(self) -> dict[str, Any]:
        return super().cut_options() | {"ratio": self.ratio}

    @override
    def healed_sizes(self, workspace: "Workspace", plan: Plan, pruned: "Sizes") -> "Sizes":
        from depthcut.heal.width import healing

        del pruned
        return healing.healed_sizes(workspace, plan)

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train and narrow the model, or attach the result of an earlier run and narrow the model."""
        from depthcut.heal.width import healing

        return healing.train_pruned(model, plan, workspace, self)
