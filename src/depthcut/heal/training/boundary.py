"""Boundary healing: layers below the cut learn the dense model's hidden states above it (arXiv:2403.17887, eq. 8).

Legend: B sequences, T tokens, D width.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.heal.training import adapters, document_mask, teacher
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.low_rank_recipe import LowRankRecipe
from depthcut.heal.training.objective import Objective, next_token_loss
from depthcut.model.decoder import layers
from depthcut.model.decoder.layerwise import DryRunDone
from depthcut.runtime import verified

if TYPE_CHECKING:
    from depthcut.heal import Workspace

StateTeacher = Callable[[MicroBatch], Tensor]
"""Maps a batch to the dense model's hidden states at the boundary, B x T x D."""
log = logging.getLogger("depthcut")


def train_boundary(
    model: nn.Module,
    plan: Plan,
    workspace: "Workspace",
    recipe: LowRankRecipe,
    error: Literal["relative", "squared"],
    mode: Literal["cached", "live"],
) -> nn.Module:
    """Train adapters below the cut, or attach the trained ones; if no layer is below, return ``model`` unchanged.

    Raises:
        UserError: if the teacher or its cache does not fit.
    """
    below = recipe.reached(plan, len(layers.layer_list(model)))
    if not below:
        log.info("heal=boundary: the pruned model has no layer below the cut, so nothing is healed")
        return model
    if verified.is_verified(workspace.folder / "adapter", workspace.digest):
        return adapters.train_adapters(model, plan, workspace, recipe, next_token_loss)  # attaches them
    above = max(plan.drop) + 1
    teach = (
        live_state_teacher(teacher.load_teacher(workspace, above), above)
        if mode == "live"
        else cached_state_teacher(workspace, above, recipe.packing)
    )
    return adapters.train_adapters(model, plan, workspace, recipe, boundary_objective(teach, len(below), error))


def boundary_objective(teach: StateTeacher, edge: int, error: Literal["relative", "squared"]) -> Objective:
    """Return the objective: the error of the hidden states before the student's layer ``edge``, mean over tokens."""

    def boundary_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
        wanted_BTD = teach(batch)
        return hidden_state_error(states_before_layer(model, batch.ids_BT, edge, batch.places_BT), wanted_BTD, error)

    return boundary_loss


def hidden_state_error(h_BTD: Tensor, wanted_BTD: Tensor, error: Literal["relative", "squared"]) -> Tensor:
    """Return the mean over tokens of ``|h - wanted|^2 / |wanted|^2``, or of ``|h - wanted|^2 / D``, in float32."""
    wanted_BTD = wanted_BTD.float()
    missed_BT = (h_BTD.float() - wanted_BTD).square().sum(-1)
    scale_BT = wanted_BTD.square().sum(-1) if error == "relative" else torch.full_like(missed_BT, h_BTD.shape[-1])
    return (missed_BT / scale_BT).mean()


def states_before_layer(model: nn.Module, ids_BT: Tensor, edge: int, places_BT: Tensor | None = None) -> Tensor:
    """Return the hidden states before layer ``edge``, at least 1; neither that layer nor those above it are run."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise DryRunDone

    handle = layers.layer_list(model)[edge - 1].register_forward_hook(stop)
    try:
        with suppress(DryRunDone):
            layers.decoder_stack(model)(**document_mask.decoder_inputs(model, ids_BT, places_BT))
    finally:
        handle.remove()
    return found[0]


def live_state_teacher(dense: nn.Module, edge: int) -> StateTeacher:
    """Return a teacher that runs the dense model on each batch, up to the boundary."""

    def teach(batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            return states_before_layer(dense, batch.ids_BT, edge, batch.places_BT)

    return teach


def cached_state_teacher(workspace: "Workspace", edge: int, packing: document_mask.Packing) -> StateTeacher:
    """Return a teacher that reads cached hidden states of the dense model, 2 D bytes per token on disk at 16 bits."""

    def ready() -> teacher.TeacherFunction:
        teach, device = live_state_teacher(teacher.load_teacher(workspace, edge), edge), torch.device(workspace.device)
        find = document_mask.position_finder(packing, workspace.texts.train())
        return lambda ids_BT: {"stream": teach(MicroBatch(ids_BT, torch.empty(0), find(ids_BT)).on(device)).cpu()}

    width = layers.text_config(workspace.dense.config).hidden_size
    size = getattr(torch, workspace.dense.dtype).itemsize
    row_bytes = workspace.texts.train().ids.shape[1] * width * size
    outputs = teacher.cache_teacher_outputs(workspace, {"asked": "stream", "edge": edge}, row_bytes, packing, ready)
    return lambda batch: outputs(batch.rows_B)["stream"].to(batch.ids_BT.device)
