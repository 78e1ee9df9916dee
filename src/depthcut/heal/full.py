"""Continued pretraining of all parameters (Shortened LLaMA, arXiv:2402.02834: CPT)."""

from typing import TYPE_CHECKING, ClassVar

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.training.recipe import TrainingRecipe
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace


@strict
class Full(TrainingRecipe, Heal):
    """Trains all parameters, including embedding, head and norms."""

    trains: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none",)
    leaves: ClassVar[str] = "weights"

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train the weights, or read the trained ones."""
        from depthcut.heal.training import full_finetune

        return full_finetune.train_weights(model, plan, workspace, self, full_finetune.all_parameters(model))
