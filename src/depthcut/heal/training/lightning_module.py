"""The healing step as a LightningModule: next-token loss, AdamW, cosine with warm-up (Gromov et al., appendix A.1)."""

import math
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import get_cosine_schedule_with_warmup

from depthcut.heal.training import fsdp
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.objective import Objective
from depthcut.heal.training.recipe import TrainingRecipe
from depthcut.model.decoder import layers


class Healing(L.LightningModule):
    """Trains the parameters of ``model`` that require a gradient."""

    def __init__(self, model: nn.Module, recipe: TrainingRecipe, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.objective = objective
        self.strict_loading = False

    def configure_model(self) -> None:
        """Shard the layers across the processes if the strategy does."""
        if self.device_mesh is not None:
            fsdp.shard_layers(self, layers.layer_list(self.model), self.device_mesh["data_parallel"])

    def forward(self, batch: MicroBatch) -> Tensor:
        """Return the loss of a batch."""
        return self.objective(self.model, batch)

    def training_step(self, batch: MicroBatch) -> Tensor:
        """Return the loss of a batch; the module is called, because FSDP2 gathers the layers' shards on a call."""
        return self(batch)

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimiser and schedule, updated every step."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for each in trained:  # torch steps shards and whole tensors separately
            kinds.setdefault((each.ndim < 2, isinstance(each, DTensor)), []).append(each)
        parameters: list[dict[str, Any]] = [
            {"params": each} | ({"weight_decay": 0.0} if vectors else {})
            for (vectors, _), each in sorted(kinds.items(), key=lambda kind: kind[0])
        ]
        recipe = self.recipe
        settings: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas, "weight_decay": recipe.weight_decay}
        if recipe.optimiser == "adamw":
            optimiser: torch.optim.Optimizer = torch.optim.AdamW(parameters, fused=trained[0].is_cuda, **settings)
        else:
            from bitsandbytes.optim.adamw import PagedAdamW8bit

            optimiser = PagedAdamW8bit(parameters, **settings)
        schedule = get_cosine_schedule_with_warmup(optimiser, self.recipe.warmup, self.recipe.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient to the recipe's norm, if it has one; keep the norm before clipping for the curve."""
        del optimizer, gradient_clip_algorithm
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        clip = nn.utils.clip_grad_norm_ if self.device_mesh is None else fsdp.clip_grad_norm
        self.grad_norm = clip(parameters, gradient_clip_val or math.inf)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return only the trained weights: the base is on disk already."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name in trained}

    def transfer_batch_to_device(self, batch: MicroBatch, device: torch.device, dataloader_idx: int) -> MicroBatch:
        """Return the batch on the model's device."""
        del dataloader_idx
        return batch.on(device)

    def cpu(self) -> Self:
        """Return the module unmoved: Lightning moves a model to the host at the end, and it would be measured there."""
        return self

    def on_train_start(self) -> None:
        """Switch to training mode: a loaded model is in evaluation mode, and Lightning would leave out dropout."""
        self.model.train()
