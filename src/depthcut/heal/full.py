"""Continued pretraining: all parameters are trained (Shortened LLaMA, arXiv:2402.02834: CPT)."""

from typing import TYPE_CHECKING, ClassVar

from depthcut.heal import Heal
from depthcut.plan import Plan
from depthcut.strict import strict
from depthcut.training.recipe import Training

if TYPE_CHECKING:
    from torch import nn

    from depthcut.lab import Lab


@strict
class Full(Training, Heal):
    """Trains all parameters, embedding, head and norms among them."""

    trains: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none",)
    leaves: ClassVar[str] = "weights"

    def __call__(self, model: "nn.Module", plan: Plan, lab: "Lab") -> "nn.Module":
        """Train the weights, or read the trained ones."""
        from depthcut.training import weights

        return weights.healed(model, plan, lab, self, weights.everything(model))
