"""LoRA healing on a 16- or 32-bit base (Hu et al., arXiv:2106.09685; Shortened LLaMA, arXiv:2402.02834)."""

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
class Lora(CheckedAdapters, AdapterRecipe, Heal):
    """Low-rank adapters on frozen, unquantised weights."""

    trains: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none",)

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train the adapters, or attach the trained ones."""
        from depthcut.heal.training import adapters

        return adapters.train_adapters(model, plan, workspace, self)
