"""QLoRA healing on a quantised base (Dettmers et al., arXiv:2305.14314), as in Gromov et al. (arXiv:2403.17887)."""

from typing import TYPE_CHECKING, ClassVar

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.training.adapter_check import CheckedAdapters
from depthcut.heal.training.low_rank_recipe import AdapterRecipe
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace


@strict
class QLora(CheckedAdapters, AdapterRecipe, Heal):
    """Low-rank adapters on frozen 4-bit (or 8-bit) weights. Adapters are never merged into quantised weights."""

    trains: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("nf4", "int8")

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train the adapters, or attach the trained ones."""
        from depthcut.heal.training import adapters

        return adapters.train_adapters(model, plan, workspace, self)
