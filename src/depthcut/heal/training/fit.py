"""One healing run under Lightning, from its last checkpoint if there is one, to the last step."""

import logging
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from depthcut.heal.training import document_mask, lean_lora, memory_plan, model_memory, shadow_layers
from depthcut.heal.training.batches import HealingData, MicroBatchLoader
from depthcut.heal.training.checkpoints import AtomicCheckpointIO, Curve
from depthcut.heal.training.fsdp import FsdpStrategy
from depthcut.heal.training.lightning_module import Healing
from depthcut.heal.training.memory_plan import Layout, MemoryPlan
from depthcut.heal.training.objective import MixedPrecision, Objective, base_model, next_token_loss
from depthcut.heal.training.recipe import TrainingRecipe
from depthcut.runtime import ranks, resume
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.heal import Workspace

MIN_COMPILE_TOKENS = 1_000_000  # tokens; compiling a layer takes half a minute
log = logging.getLogger("depthcut")


def fit_model(
    model: nn.Module,
    recipe: TrainingRecipe,
    workspace: "Workspace",
    objective: Objective = next_token_loss,
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Train the parameters of ``model`` that require a gradient, in place; several processes share each step.

    ``workspace.folder/heal/last.ckpt`` holds the full state for an exact resume during the run and is removed at the
    end. When memory runs out, a layout that needs less continues from there, or starts over: the same batches, in the
    same order.

    Raises:
        UserError: if even the layout that needs least does not fit.
    """
    with shadow_layers.shadowed_layers(model, workspace.device) if recipe.sharded else nullcontext():
        fit_with_retries(model, recipe, workspace, objective, callbacks)


def fit_with_retries(
    model: nn.Module,
    recipe: TrainingRecipe,
    workspace: "Workspace",
    objective: Objective,
    callbacks: Sequence[L.Callback],
) -> None:
    """Train; when out of memory, retry with a layout that needs less. Raises as :func:`fit_model`."""
    if recipe.packing == "separate":
        document_mask.check_document_masking(model)
    space = MemoryPlan.of(model, recipe, workspace.device, isinstance(objective, MixedPrecision))
    layouts = memory_plan.choose_layouts(space, recipe, should_compile(recipe, workspace.device))
    last = workspace.folder / "heal" / "last.ckpt"
    alone = ranks.world_size() == 1
    resumes = resume.is_resumable(last, workspace.digest)
    begin_again = make_rollback(model) if alone and len(layouts) > 1 and not resumes else None
    for number, layout in enumerate(layouts):
        log.info(memory_plan.describe_layout(layout, space, recipe))
        try:
            with applied_layout(model, layout, recipe.runs_all):
                run_trainer(model, recipe, layout, workspace, objective, callbacks)
            return
        except torch.OutOfMemoryError:
            if number + 1 == len(layouts) or not alone:
                raise UserError(
                    f"healing ran out of memory on {workspace.device}: {oom_advice(layout, recipe)}"
                ) from None
            log.warning("healing ran out of memory; retrying with a smaller micro-batch or more checkpointing")
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if begin_again and not last.exists():
            begin_again()


def make_rollback(model: nn.Module) -> Callable[[], None]:
    """Return a function that restores the current trained weights and random states; they are kept on the host."""
    before = [(p, p.detach().to("cpu", copy=True)) for p in model.parameters() if p.requires_grad]
    random = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @torch.no_grad()
    def again() -> None:
        for parameter, tensor in before:
            parameter.copy_(tensor)
        torch.set_rng_state(random[0])
        if random[1] is not None:
            torch.cuda.set_rng_state(random[1])

    return again


def oom_advice(layout: Layout, recipe: TrainingRecipe) -> str:
    """Return further advice against running out of memory."""
    if layout.micro_batch > 1:
        return f"use a heal.micro_batch below {layout.micro_batch}"
    if recipe.recompute not in ("auto", "all"):
        return "use heal.recompute=all"
    return "use model.quantise=nf4, a shorter heal.length, a larger cut or more memory"


def run_trainer(
    model: nn.Module,
    recipe: TrainingRecipe,
    layout: Layout,
    workspace: "Workspace",
    objective: Objective,
    callbacks: Sequence[L.Callback],
) -> None:
    """Run all steps, or the remaining ones."""
    folder = workspace.folder / "heal"
    folder.mkdir(parents=True, exist_ok=True)
    accumulate = recipe.batch // (layout.micro_batch * ranks.world_size())
    gpu = workspace.device.startswith("cuda")
    apart = recipe.batch if recipe.packing == "separate" else None
    text = workspace.texts.train()
    batches = MicroBatchLoader(text, layout.micro_batch, recipe.steps * accumulate, workspace.seed, gpu, apart)
    trainer = L.Trainer(
        max_steps=recipe.steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=recipe.clip or None,
        accelerator="gpu" if gpu else "cpu",
        strategy=FsdpStrategy() if recipe.sharded else "ddp" if ranks.world_size() > 1 else "auto",
        devices=ranks.world_size() // ranks.node_count(),
        num_nodes=ranks.node_count(),
        use_distributed_sampler=False,
        logger=[] if ranks.global_rank() else workspace.loggers(),
        callbacks=[Curve(folder, recipe.save_every, recipe.batch * text.ids.shape[1], workspace.digest), *callbacks],
        plugins=[AtomicCheckpointIO(), ranks.cluster_environment()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    start = last if resume.is_resumable(last, workspace.digest) else None
    try:
        trainer.fit(Healing(model, recipe, objective), HealingData(batches), ckpt_path=start, weights_only=True)
    except SystemExit as stop:  # Lightning raises it on Ctrl-C
        raise KeyboardInterrupt from stop
    assert trainer.global_step == recipe.steps, "half-trained adapters must never be taken for healed ones"
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        shutil.rmtree(folder)


def should_compile(recipe: TrainingRecipe, device: str) -> bool:
    """Return whether to compile the layers."""
    if recipe.compile != "auto":
        return recipe.compile
    return (
        device.startswith("cuda")
        and bool(find_spec("triton"))
        and recipe.sequences * recipe.length >= MIN_COMPILE_TOKENS
    )


@contextmanager
def applied_layout(model: nn.Module, layout: Layout, runs_all: bool = True) -> Generator[None]:
    """Compile and checkpoint layers as in ``layout`` inside the ``with``, with lean products of frozen weights."""
    base_model(model).config.use_cache = False
    stack, below = model_memory.gradient_layers(model, runs_all), model_memory.frozen_prefix_layers(model)
    again = {index * len(stack) // layout.recompute for index in range(layout.recompute)} if layout.recompute else set()
    with ExitStack() as changes:
        changes.enter_context(lean_lora.lean_layers(model))
        if layout.compiled:
            torch.compiler.reset()  # code of earlier points counts against dynamo's limit; beyond it, layers run slowly
        for index, layer in enumerate(stack):
            forward = torch.compile(layer.forward, dynamic=False) if layout.compiled else layer.forward
            vars(layer)["forward"] = partial(checkpoint, forward, use_reentrant=False) if index in again else forward
            changes.callback(vars(layer).pop, "forward")
        if layout.compiled:
            for layer in below:
                vars(layer)["forward"] = torch.compile(layer.forward, dynamic=False)
                changes.callback(vars(layer).pop, "forward")
        yield
