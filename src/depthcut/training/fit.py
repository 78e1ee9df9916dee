"""One healing run under Lightning: from its last checkpoint where there is one, to the last step."""

import logging
import shutil
from typing import TYPE_CHECKING

import lightning as L
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from depthcut import ranks
from depthcut.training.batches import Batches, HealingData
from depthcut.training.checkpoints import Curve, DurableIO
from depthcut.training.module import Healing
from depthcut.training.recipe import Training

if TYPE_CHECKING:
    from depthcut.lab import Lab

log = logging.getLogger("depthcut")


def fit(model: nn.Module, recipe: Training, lab: "Lab") -> None:
    """Train the parameters of ``model`` that require a gradient, in place; several processes share each step.

    ``lab.folder/heal/last.ckpt`` holds all that an exact resume needs while it runs, and is removed at the end.
    """
    folder = lab.folder / "heal"
    folder.mkdir(parents=True, exist_ok=True)
    accumulate = recipe.batch // (recipe.micro_batch * ranks.world())
    batches = Batches(lab.train(), recipe.micro_batch, recipe.steps * accumulate, lab.experiment.seed)
    prepare(model, recipe)
    curve = Curve(folder, recipe.save_every, recipe.batch * recipe.length)
    trainer = L.Trainer(
        max_steps=recipe.steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=recipe.clip or None,
        accelerator="gpu" if lab.device.startswith("cuda") else "cpu",
        strategy="ddp" if ranks.world() > 1 else "auto",
        devices=ranks.world() // ranks.nodes(),
        num_nodes=ranks.nodes(),
        use_distributed_sampler=False,
        logger=[] if ranks.rank() else lab.experiment.log.loggers(lab),
        callbacks=[curve],
        plugins=[DurableIO(), ranks.environment()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    if last.exists():
        log.info("healing goes on from %s", last)
    start = last if last.exists() else None
    try:
        trainer.fit(Healing(model, recipe), HealingData(batches), ckpt_path=start, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop
    assert trainer.global_step == recipe.steps, "half-trained adapters must never be taken for healed ones"
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        shutil.rmtree(folder)


def prepare(model: nn.Module, recipe: Training) -> None:
    """Switch recomputation on or off."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    base.config.use_cache = False
    if recipe.recompute:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.disable_input_require_grads()  # else the backward pass goes on from the first adapter to the embedding
