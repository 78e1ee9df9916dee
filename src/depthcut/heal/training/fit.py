"""One healing run under Lightning: from its last checkpoint where there is one, to the last step."""

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

from depthcut.heal.training import document_mask, fsdp, lean_lora, memory_plan
from depthcut.heal.training.batches import Batches, HealingData
from depthcut.heal.training.checkpoints import Curve, DurableIO
from depthcut.heal.training.fsdp import Sharding
from depthcut.heal.training.lightning_module import Healing
from depthcut.heal.training.memory_plan import Layout, Room
from depthcut.heal.training.objective import Mixed, Objective, base_of, next_token
from depthcut.heal.training.recipe import Training
from depthcut.runtime import ranks, resume
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.study.lab import Lab

LONG = 1_000_000  # tokens; compiling a layer takes half a minute
log = logging.getLogger("depthcut")


def fit(
    model: nn.Module,
    recipe: Training,
    lab: "Lab",
    objective: Objective = next_token,
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Train the parameters of ``model`` that require a gradient, in place; several processes share each step.

    ``lab.folder/heal/last.ckpt`` holds all that an exact resume needs while it runs, and is removed at the end.
    Where memory runs out, a layout that needs less goes on from there, or begins again: the same batches, in the same
    order.

    Raises:
        UserError: if not even the layout that needs least has room.
    """
    with fsdp.twinned(model, lab.device) if recipe.sharded else nullcontext():
        attempts(model, recipe, lab, objective, callbacks)


def attempts(
    model: nn.Module, recipe: Training, lab: "Lab", objective: Objective, callbacks: Sequence[L.Callback]
) -> None:
    """Train, with less at a time where memory runs out. Raises as :func:`fit`."""
    if recipe.packing == "separate":
        document_mask.check(model)
    space = Room.of(model, recipe, lab.device, isinstance(objective, Mixed))
    layouts = memory_plan.choose(space, recipe, compiles(recipe, lab.device))
    last = lab.folder / "heal" / "last.ckpt"
    alone = ranks.world() == 1
    resumes = resume.usable(last, lab.digest)
    begin_again = beginning(model) if alone and len(layouts) > 1 and not resumes else None
    for number, layout in enumerate(layouts):
        log.info(memory_plan.words(layout, space, recipe))
        try:
            with laid_out(model, layout, recipe.runs_all):
                train(model, recipe, layout, lab, objective, callbacks)
            return
        except torch.OutOfMemoryError:
            if number + 1 == len(layouts) or not alone:
                raise UserError(f"healing ran out of memory on {lab.device}: {advice(layout, recipe)}") from None
            log.warning("healing ran out of memory; it goes on with less at a time")
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if begin_again and not last.exists():
            begin_again()


def beginning(model: nn.Module) -> Callable[[], None]:
    """What sets the weights that are trained, and the random numbers, back to what they are now; kept on the host."""
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


def advice(layout: Layout, recipe: Training) -> str:
    """What else may help."""
    if layout.micro_batch > 1:
        return f"take a heal.micro_batch below {layout.micro_batch}"
    if recipe.recompute not in ("auto", "all"):
        return "take heal.recompute=all"
    return "take model.quantise=nf4, a shorter heal.length, a larger cut or more memory"


def train(
    model: nn.Module,
    recipe: Training,
    layout: Layout,
    lab: "Lab",
    objective: Objective,
    callbacks: Sequence[L.Callback],
) -> None:
    """Run all steps, or those that are left."""
    folder = lab.folder / "heal"
    folder.mkdir(parents=True, exist_ok=True)
    accumulate = recipe.batch // (layout.micro_batch * ranks.world())
    gpu = lab.device.startswith("cuda")
    apart = recipe.batch if recipe.packing == "separate" else None
    text = lab.train()
    batches = Batches(text, layout.micro_batch, recipe.steps * accumulate, lab.experiment.seed, gpu, apart)
    trainer = L.Trainer(
        max_steps=recipe.steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=recipe.clip or None,
        accelerator="gpu" if gpu else "cpu",
        strategy=Sharding() if recipe.sharded else "ddp" if ranks.world() > 1 else "auto",
        devices=ranks.world() // ranks.nodes(),
        num_nodes=ranks.nodes(),
        use_distributed_sampler=False,
        logger=[] if ranks.rank() else lab.experiment.log.loggers(lab),
        callbacks=[Curve(folder, recipe.save_every, recipe.batch * text.ids.shape[1], lab.digest), *callbacks],
        plugins=[DurableIO(), ranks.environment()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    start = last if resume.usable(last, lab.digest) else None
    try:
        trainer.fit(Healing(model, recipe, objective), HealingData(batches), ckpt_path=start, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop
    assert trainer.global_step == recipe.steps, "half-trained adapters must never be taken for healed ones"
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        shutil.rmtree(folder)


def compiles(recipe: Training, device: str) -> bool:
    """Whether layers are compiled."""
    if recipe.compile != "auto":
        return recipe.compile
    return device.startswith("cuda") and bool(find_spec("triton")) and recipe.sequences * recipe.length >= LONG


@contextmanager
def laid_out(model: nn.Module, layout: Layout, runs_all: bool = True) -> Generator[None]:
    """Inside the ``with``, layers are compiled and recompute as ``layout`` says, and frozen products are lean."""
    base_of(model).config.use_cache = False
    stack, below = memory_plan.reached(model, runs_all), memory_plan.below(model)
    again = {index * len(stack) // layout.recompute for index in range(layout.recompute)} if layout.recompute else set()
    with ExitStack() as changes:
        changes.enter_context(lean_lora.lean(model))
        if layout.compiled:
            torch.compiler.reset()  # what was compiled for other points counts against dynamo's limit, then runs slowly
        for index, layer in enumerate(stack):
            forward = torch.compile(layer.forward, dynamic=False) if layout.compiled else layer.forward
            vars(layer)["forward"] = partial(checkpoint, forward, use_reentrant=False) if index in again else forward
            changes.callback(vars(layer).pop, "forward")
        if layout.compiled:
            for layer in below:
                vars(layer)["forward"] = torch.compile(layer.forward, dynamic=False)
                changes.callback(vars(layer).pop, "forward")
        yield
