"""Distillation from the dense model's k most likely next tokens (arXiv:1503.02531).

Legend: B sequences, T tokens, N positions, D width, V vocabulary, K the teacher's most likely tokens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from depthcut.cut.plan import Plan
from depthcut.heal.training import adapters, document_mask, teacher
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.low_rank_recipe import AdapterRecipe
from depthcut.heal.training.objective import (
    Objective,
    base_model,
    chunked_loss,
    decode,
    final_hidden_states,
    next_token_loss,
    next_tokens,
    positions,
    project_logits,
    summed_cross_entropy,
)
from depthcut.model.decoder import layers
from depthcut.model.decoder.inputs import NO_TARGET
from depthcut.runtime import store

if TYPE_CHECKING:
    from depthcut.heal import Workspace

TopKLogProbs = tuple[Tensor, Tensor]
"""The K most likely tokens at N positions; their log-probabilities and that of all other tokens together."""
TopKTeacher = Callable[[MicroBatch], Callable[[Tensor], TopKLogProbs]]
"""Maps a batch to a function from position numbers, of all but each row's last, to their log-probabilities."""
LOG_PROB_FLOOR = -100.0
"""Log-probability that stands for a probability of 0."""


class Distillation(Protocol):
    """Options of the distillation; :class:`depthcut.heal.distill.Distill` documents each."""

    @property
    def mix(self) -> float: ...

    @property
    def top_k(self) -> int: ...

    @property
    def temperature(self) -> float: ...

    @property
    def teacher(self) -> Literal["cached", "live"]: ...

    @property
    def packing(self) -> document_mask.Packing: ...


def train_distilled(
    model: nn.Module, plan: Plan, workspace: "Workspace", recipe: AdapterRecipe, aim: Distillation
) -> nn.Module:
    """Train adapters on ``model`` towards the dense model, or attach the trained ones.

    Raises:
        UserError: if the teacher or its cache does not fit.
    """
    done = store.is_verified(workspace.folder / "adapter", workspace.digest) or not recipe.reached(
        plan, len(layers.layer_list(model))
    )
    goal = next_token_loss if done else distill_objective(build_teacher(workspace, aim), aim)
    return adapters.train_adapters(model, plan, workspace, recipe, goal)


def build_teacher(workspace: "Workspace", recipe: Distillation) -> TopKTeacher:
    """Return the teacher that the recipe names."""
    if recipe.teacher == "live":
        return live_topk_teacher(teacher.load_teacher(workspace, workspace.dense.depth), recipe)
    return cached_topk_teacher(workspace, recipe)


def distill_objective(teach: TopKTeacher, recipe: Distillation) -> Objective:
    """Return ``mix * temperature^2 * KL + (1 - mix) * NLL`` (see :class:`depthcut.heal.distill.Distill`)."""
    mix, temperature = recipe.mix, recipe.temperature

    def mixed(model: nn.Module, batch: MicroBatch) -> Tensor:
        log_probs_at, next_N = teach(batch), next_tokens(batch).flatten()

        def loss(logits_NV: Tensor, places_N: Tensor) -> Tensor:
            z_NV = logits_NV.float()
            ids_NK, log_p_NC = log_probs_at(places_N)
            kl_N = topk_divergence(z_NV / temperature, ids_NK, log_p_NC) * (next_N[places_N] != NO_TARGET)
            total = mix * temperature**2 * kl_N.sum()
            return total + (1 - mix) * summed_cross_entropy(z_NV, next_N[places_N]) if mix < 1 else total

        decoded = decode(model, batch.ids_BT, batch.places_BT)
        places_N = torch.arange(len(next_N), device=next_N.device)
        return chunked_loss(model, decoded, places_N.view(len(batch.ids_BT), -1), loss, batch.targets)

    return mixed


def topk_divergence(z_NV: Tensor, ids_NK: Tensor, log_p_NC: Tensor) -> Tensor:
    """Return KL(p || q) at each position over K + 1 classes, or V if K = V; q = softmax(z). In float32.

    The log-probability of all other tokens under q is summed from these tokens. Computing it as log(1 - q(S)) would
    lose all digits of a small rest.
    """
    log_q_NV = z_NV.log_softmax(-1)
    log_q_NC = log_q_NV.gather(1, ids_NK)
    if ids_NK.shape[1] < z_NV.shape[1]:
        log_q_NC = torch.cat([log_q_NC, remaining_log_prob(log_q_NV, ids_NK)], -1)
    return F.kl_div(log_q_NC, log_p_NC.float(), reduction="none", log_target=True).sum(-1)


def remaining_log_prob(log_p_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Return the log-probability of all tokens except these, N x 1."""
    return log_p_NV.scatter(1, ids_NK, -torch.inf).logsumexp(-1, keepdim=True)


def topk_log_probs(dense: nn.Module, kind: type[ModelOutput], h_ND: Tensor, recipe: Distillation) -> TopKLogProbs:
    """Return the dense model's log-probabilities from the head's inputs: int64 N x K, float16 N x (K + 1).

    Args:
        dense: the teacher.
        kind: the class of its decoder's output.
        h_ND: the hidden states in that output.
        recipe: K, the temperature.

    Half precision changes no probability by more than 0.0002. A live teacher's values are rounded too, to equal those
    of a cached one.
    """
    head = base_model(dense)
    ids: list[Tensor] = []
    logs: list[Tensor] = []
    for part_ND in h_ND.split(positions(head)):
        log_p_NV = (project_logits(head, kind, part_ND).float() / recipe.temperature).log_softmax(-1)
        log_p_NC, ids_NK = log_p_NV.topk(recipe.top_k)
        if recipe.top_k < log_p_NV.shape[1]:
            log_p_NC = torch.cat([log_p_NC, remaining_log_prob(log_p_NV, ids_NK)], -1)
        ids.append(ids_NK)
        logs.append(log_p_NC.clamp(min=LOG_PROB_FLOOR).half())
    return torch.cat(ids), torch.cat(logs)


def live_topk_teacher(dense: nn.Module, recipe: Distillation) -> TopKTeacher:
    """Return a teacher that runs the dense model on each batch; only the student's positions have logits in memory."""

    def teach(batch: MicroBatch) -> Callable[[Tensor], TopKLogProbs]:
        with torch.no_grad():
            decoded = decode(dense, batch.ids_BT, batch.places_BT)
        h_ND = final_hidden_states(decoded)

        def log_probs_at(places_N: Tensor) -> TopKLogProbs:
            with torch.no_grad():
                return topk_log_probs(dense, type(decoded), h_ND[places_N], recipe)

        return log_probs_at

    return teach


def cached_topk_teacher(workspace: "Workspace", recipe: Distillation) -> TopKTeacher:
    """Return a teacher that reads cached outputs: 4 K + 2 bytes per token on disk (6 K + 2 beyond 65,536 tokens)."""
    vocabulary = layers.text_config(workspace.dense.config).vocab_size
    small = torch.uint16 if vocabulary <= 2**16 else torch.int32
    length = workspace.texts.train().ids.shape[1] - 1

    def ready() -> teacher.TeacherFunction:
        dense, find = (
            teacher.load_teacher(workspace, workspace.dense.depth),
            document_mask.position_finder(recipe.packing, workspace.texts.train()),
        )

        def run(ids_BT: Tensor) -> teacher.TeacherOutputs:
            batch = MicroBatch(ids_BT, torch.empty(0), find(ids_BT)).on(torch.device(workspace.device))
            with torch.no_grad():
                decoded = decode(dense, batch.ids_BT, batch.places_BT)
                found = topk_log_probs(dense, type(decoded), final_hidden_states(decoded), recipe)
            ids_BTK, log_p_BTC = (each.cpu().unflatten(0, (len(ids_BT), -1)) for each in found)
            return {"ids": ids_BTK.to(small), "log_p": log_p_BTC}

        return run

    asked = {"asked": "likeliest", "top_k": recipe.top_k, "temperature": recipe.temperature}
    row_bytes = length * ((small.itemsize + 2) * recipe.top_k + 2)
    outputs = teacher.cache_teacher_outputs(workspace, asked, row_bytes, recipe.packing, ready)

    def teach(batch: MicroBatch) -> Callable[[Tensor], TopKLogProbs]:
        found = outputs(batch.rows_B)
        device = batch.ids_BT.device
        ids_NK = found["ids"].flatten(0, 1).long().to(device)
        log_p_NC = found["log_p"].flatten(0, 1).to(device)
        return lambda places_N: (ids_NK[places_N], log_p_NC[places_N])

    return teach
