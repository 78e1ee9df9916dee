"""Trains a layer to reproduce a block of layers (LLM-Streamline, arXiv:2403.19135).

Legend: B batch, T tokens, D width.
"""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder import inputs, layers, layerwise
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery import inserted
from depthcut.replace.fitting import boundary_states, layer_weights
from depthcut.replace.fitting.layer_training import LayerFit, LayerTraining
from depthcut.runtime import resume
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

if TYPE_CHECKING:
    from depthcut.replace import Site

log = logging.getLogger("depthcut")


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
