"""Partial fine-tuning of the head and the last layers (Reassessing Layer Pruning in LLMs, arXiv:2411.15558)."""

from typing import TYPE_CHECKING, ClassVar

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.training.recipe import Positive, TrainingRecipe
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace


@strict
class Partial(TrainingRecipe, Heal):
    """Trains the head and the last layers; no gradient reaches the layers below them.

    A head tied to the embedding stays frozen: training it as the embedding would need gradients through all layers, and
    a copy of its own would enlarge the model by several layers' weights.

    Attributes:
        last: number of layers, from the end; all if fewer are left.
    """

    last: Positive
    trains: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none",)
    leaves: ClassVar[str] = "weights"

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train the weights, or read the trained ones."""
        from depthcut.heal.training import full_finetune

        return full_finetune.train_weights(
            model, plan, workspace, self, full_finetune.last_layer_parameters(model, self.last)
        )
