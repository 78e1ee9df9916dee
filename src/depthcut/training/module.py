"""The healing step as a LightningModule: next-token loss, AdamW, cosine with warm-up (Gromov et al., appendix A.1)."""

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from depthcut.training.recipe import Training


class Healing(L.LightningModule):
    """Trains the parameters of ``model`` that require a gradient."""

    def __init__(self, model: nn.Module, recipe: Training) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.strict_loading = False

    def training_step(self, ids_BT: Tensor) -> Tensor:
        """Mean negative log-likelihood of a token given the tokens before it, in nats."""
        return next_token_loss(self.model, ids_BT)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and schedule, stepped once a step."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        settings: dict[str, Any] = {"lr": self.recipe.lr, "weight_decay": self.recipe.weight_decay}
        if self.recipe.optimiser == "adamw":
            optimiser: torch.optim.Optimizer = torch.optim.AdamW(parameters, **settings)
        else:
            from bitsandbytes.optim.adamw import PagedAdamW8bit

            optimiser = PagedAdamW8bit(parameters, **settings)
        schedule = get_cosine_schedule_with_warmup(optimiser, self.recipe.warmup, self.recipe.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient to the recipe's norm, if it has one; the norm before that is kept for the curve."""
        del optimizer, gradient_clip_algorithm
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.grad_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Only what is trained: the base is on the disk already."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name in trained}

    def on_train_start(self) -> None:
        """A loaded model is in evaluation mode, and Lightning leaves it there: dropout would be off without a word."""
        self.model.train()


def next_token_loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Mean cross-entropy of ``ids[:, 1:]`` given what is before them, in float32."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten())
