"""Trains a layer to reproduce a block of layers (LLM-Streamline, arXiv:2403.19135).

Legend: B batch, T tokens, D width.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder import inputs, layers, layerwise
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery import inserted
from depthcut.replace.fitting import boundary_states, layer_weights
from depthcut.runtime import resume, store
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

if TYPE_CHECKING:
    from depthcut.replace import Site

BETAS = (0.9, 0.95)
log = logging.getLogger("depthcut")


class LayerFit(Protocol):
    """Options of the training; :class:`depthcut.replace.layer.Layer` documents each."""

    @property
    def steps(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def lr_end(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def save_every(self) -> int: ...

    @property
    def sequences(self) -> int: ...


class LayerTraining:
    """Student layers and the state of their training.

    Attributes:
        students: by the first layer of each gap.
        step: number of steps done.
        first: squared error of the first batch.
        last: squared error of the batch of the last step.
    """

    def __init__(self, students: dict[int, nn.Module], recipe: LayerFit) -> None:
        self.students = students
        parameters = [weight for each in students.values() for weight in each.parameters()]
        self.optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, betas=BETAS, weight_decay=recipe.weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, recipe.steps, recipe.lr_end)
        self.step, self.first, self.last = 0, math.nan, math.nan

    def made(self, error: float) -> None:
        """Step with the gradients of a batch that has this squared error.

        Raises:
            UserError: if the error or an updated weight is not finite.
        """
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()
        self.step, self.last = self.step + 1, error
        self.first = error if self.step == 1 else self.first
        weights = [weight for each in self.students.values() for weight in each.parameters()]
        if not math.isfinite(error) or not all(torch.stack([weight.isfinite().all() for weight in weights])):
            raise UserError(
                f"diverged: replace=layer has a non-finite loss at step {self.step}; use a lower replace.lr"
            )

    def write(self, path: Path) -> None:
        """Write a checkpoint with the full state for an exact resume."""
        numbers = {
            "step": self.step,
            "first": self.first,
            "last": self.last,
            resume.KEY: resume.checkpoint_identity(path.stem),
        }
        states = {name: part.state_dict() for name, part in self.parts().items()}
        with store.atomic_write(path) as temporary:
            torch.save(numbers | {"states": states}, temporary)

    def read(self, path: Path, device: str) -> None:
        """Resume from a checkpoint."""
        found: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        self.step, self.first, self.last = found["step"], found["first"], found["last"]
        for name, part in self.parts().items():
            part.load_state_dict(found["states"][name])
        log.info("replace=layer resumes at step %d: %s", self.step, path)

    def parts(self) -> dict[str, Any]:
        """Return the objects with a state, by name."""
        students = {f"layer {start}": each for start, each in self.students.items()}
        return {"optimiser": self.optimiser, "schedule": self.schedule, **students}


def checkpoint_path(site: "Site", plan: Plan) -> Path:
    """Return the path of the training's checkpoint, next to the filling in the cache, for all points that need it."""
    return site.cache / "replacements" / f"{site.key(plan)}.ckpt"


def train_layers(model: nn.Module, plan: Plan, site: "Site", recipe: LayerFit) -> dict[int, dict[str, Tensor]]:
    """Train a layer for each gap, initialised from its first dropped layer; return the parameters in float32.

    The dense model computes inputs and targets a batch at a time; none are kept. An interrupted training resumes from
    its last checkpoint with the same batches in the same order.

    Raises:
        UserError: if the dense model does not fit on the device.
    """
    if boundary_states.needs_streaming(plan, site):
        raise UserError(
            "replace=layer trains against the dense model, which must be in memory: use model.quantise=nf4 and "
            "stream=never, a larger device, or another replace"
        )
    students = {start: student_layer(site, start, model) for start, _ in inserted.gap_spans(plan)}
    course, path = LayerTraining(students, recipe), checkpoint_path(site, plan)
    if resume.is_resumable(path, path.stem):
        course.read(path, site.dense.device)
    with (
        boundary_states.restored_dense(model, plan, site) as dense,
        Meter("replacing", recipe.steps, course.step) as meter,
    ):
        for ids_BT, mask_BT in step_batches(site, recipe, course.step):
            course.made(accumulate_gradients(dense, plan, students, ids_BT, mask_BT))
            meter.step(f"error {course.last:.4f}")
            if course.step % recipe.save_every == 0:
                course.write(path)
    log.info("replacement layers: squared error %.4g in the first batch, %.4g in the last", course.first, course.last)
    return {start: {n: p.detach() for n, p in each.named_parameters()} for start, each in students.items()}


def student_layer(site: "Site", number: int, model: nn.Module) -> nn.Module:
    """Return a trainable copy of a layer of the dense model."""
    form = LoadConfig("none", torch.float32, site.dense.device)
    like = layers.layer_list(model)[0]
    return inserted.build_layer(
        layer_weights.meta_layers(site.dense)[number], layer_weights.read_layer_weights(site.dense, number), form, like
    ).requires_grad_(True)


def step_batches(site: "Site", recipe: LayerFit, done: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a batch for each step after the first ``done``, in the text's order; a shorter text is repeated."""
    text = site.texts.part("train", recipe.sequences)
    for step in range(done, recipe.steps):
        rows_B = np.arange(step * recipe.batch, (step + 1) * recipe.batch) % len(text)
        some = dataclasses.replace(text, ids=text.ids[rows_B], lengths=text.lengths[rows_B])
        yield next(some.batches(recipe.batch))


def accumulate_gradients(
    dense: nn.Module, plan: Plan, students: dict[int, nn.Module], ids_BT: Tensor, mask_BT: Tensor
) -> float:
    """Accumulate the gradients of a batch; return the squared error, mean over tokens and width, summed over gaps."""
    with torch.no_grad():
        way = layerwise.start_forward(dense, inputs.model_inputs(dense, ids_BT, mask_BT))
        sides = [
            (start, x_BTD, y_BTD) for start, _, x_BTD, y_BTD in boundary_states.gap_states(way, (ids_BT, mask_BT), plan)
        ]
    real_BT, total = mask_BT.bool().to(way.h_BTD.device), 0.0
    for start, x_BTD, y_BTD in sides:
        guess_BTD = student_output(students[start], way.layer_arguments[start], x_BTD)
        error = (guess_BTD[real_BT].float() - y_BTD[real_BT].float()).square().mean()
        error.backward()
        total += error.item()
    return total


def student_output(student: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], x_BTD: Tensor) -> Tensor:
    """Return the stream after a layer in float32, computed in the dtype of the incoming stream."""
    args, kwargs = call
    low = x_BTD.dtype != torch.float32
    with torch.autocast(x_BTD.device.type, dtype=x_BTD.dtype if low else torch.bfloat16, enabled=low):
        output = student(x_BTD, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output
