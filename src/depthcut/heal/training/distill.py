"""Healing by what the dense model thinks of each next token, as far as its likeliest k (arXiv:1503.02531).

Legend: B sequences, T tokens, N positions, D width, V vocabulary, K the teacher's likeliest tokens.
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
from depthcut.heal.training.recipe import AdapterRecipe
from depthcut.model.decoder import layers
from depthcut.model.decoder.inputs import NO_TARGET
from depthcut.runtime import store

if TYPE_CHECKING:
    from depthcut.heal import Workspace

TopKLogProbs = tuple[Tensor, Tensor]
"""The K likeliest tokens of N positions, and the logarithms of their probabilities and of what all others have."""
TopKTeacher = Callable[[MicroBatch], Callable[[Tensor], TopKLogProbs]]
"""From a batch to what is thought at some of its positions, whose numbers are given: all but each row's last."""
LOG_PROB_FLOOR = -100.0
"""The logarithm of a probability that is none."""


class Distillation(Protocol):
    """What the student learns from the teacher; :class:`depthcut.heal.distill.Distill` explains each."""

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
        UserError: if there is no room for the teacher or its cache.
    """
    done = store.is_verified(workspace.folder / "adapter", workspace.digest) or not recipe.reached(
        plan, len(layers.layer_list(model))
    )
    goal = next_token_loss if done else distill_objective(build_teacher(workspace, aim), aim)
    return adapters.train_adapters(model, plan, workspace, recipe, goal)


def build_teacher(workspace: "Workspace", recipe: Distillation) -> TopKTeacher:
    """The teacher that the recipe names."""
    if recipe.teacher == "live":
        return live_topk_teacher(teacher.load_teacher(workspace, workspace.dense.depth), recipe)
    return cached_topk_teacher(workspace, recipe)


def distill_objective(teach: TopKTeacher, recipe: Distillation) -> Objective:
    """``mix * temperature^2 * KL + (1 - mix) * NLL`` (see :class:`depthcut.heal.distill.Distill`)."""
    mix, temperature = recipe.mix, recipe.temperature

    def mixed(model: nn.Module, batch: MicroBatch) -> Tensor:
        thought, next_N = teach(batch), next_tokens(batch).flatten()

        def loss(logits_NV: Tensor, places_N: Tensor) -> Tensor:
            z_NV = logits_NV.float()
            ids_NK, log_p_NC = thought(places_N)
            kl_N = topk_divergence(z_NV / temperature, ids_NK, log_p_NC) * (next_N[places_N] != NO_TARGET)
            total = mix * temperature**2 * kl_N.sum()
            return total + (1 - mix) * summed_cross_entropy(z_NV, next_N[places_N]) if mix < 1 else total

        decoded = decode(model, batch.ids_BT, batch.places_BT)
        places_N = torch.arange(len(next_N), device=next_N.device)
        return chunked_loss(model, decoded, places_N.view(len(batch.ids_BT), -1), loss, batch.targets)

    return mixed


def topk_divergence(z_NV: Tensor, ids_NK: Tensor, log_p_NC: Tensor) -> Tensor:
    """KL(p || q) of each position over K + 1 classes, or V where K is that; q = softmax(z). In float32.

    The logarithm of what q gives to all other tokens is summed up from these, not taken as that of 1 - q(S): where the
    rest is small nothing would be left of it.
    """
    log_q_NV = z_NV.log_softmax(-1)
    log_q_NC = log_q_NV.gather(1, ids_NK)
    if ids_NK.shape[1] < z_NV.shape[1]:
        log_q_NC = torch.cat([log_q_NC, remaining_log_prob(log_q_NV, ids_NK)], -1)
    return F.kl_div(log_q_NC, log_p_NC.float(), reduction="none", log_target=True).sum(-1)


def remaining_log_prob(log_p_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """The logarithm of the probability of all tokens but these, N x 1."""
    return log_p_NV.scatter(1, ids_NK, -torch.inf).logsumexp(-1, keepdim=True)


def topk_log_probs(dense: nn.Module, kind: type[ModelOutput], h_ND: Tensor, recipe: Distillation) -> TopKLogProbs:
    """What the dense model thinks, from what its head reads: int64 N x K, float16 N x (K + 1).

    Args:
        dense: the teacher.
        kind: the class of what its decoder gives.
        h_ND: the states in that.
        recipe: K, the temperature.

    Half precision moves no probability by more than 0.0002. A live teacher's are rounded too: it says what a cached one
    does.
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
    """The dense model reads each batch; its logits are there for as many positions as the student's are."""

    def teach(batch: MicroBatch) -> Callable[[Tensor], TopKLogProbs]:
        with torch.no_grad():
            decoded = decode(dense, batch.ids_BT, batch.places_BT)
        h_ND = final_hidden_states(decoded)

        def thought(places_N: Tensor) -> TopKLogProbs:
            with torch.no_grad():
                return topk_log_probs(dense, type(decoded), h_ND[places_N], recipe)

        return thought

    return teach


def cached_topk_teacher(workspace: "Workspace", recipe: Distillation) -> TopKTeacher:
    """The dense model has read the text before; 4 K + 2 bytes a token on the disk (6 K + 2 beyond 65,536 tokens)."""
    vocabulary = layers.text_config(workspace.dense.config).vocab_size
    small = torch.uint16 if vocabulary <= 2**16 else torch.int32
    length = workspace.texts.train().ids.shape[1] - 1

    def ready() -> teacher.TeacherFunction:
        dense, find = (
            teacher.load_teacher(workspace, workspace.dense.depth),
            document_mask.position_finder(recipe.packing, workspace.texts.train()),
        )

        def says(ids_BT: Tensor) -> teacher.TeacherOutputs:
            batch = MicroBatch(ids_BT, torch.empty(0), find(ids_BT)).on(torch.device(workspace.device))
            with torch.no_grad():
                decoded = decode(dense, batch.ids_BT, batch.places_BT)
                found = topk_log_probs(dense, type(decoded), final_hidden_states(decoded), recipe)
            ids_BTK, log_p_BTC = (each.cpu().unflatten(0, (len(ids_BT), -1)) for each in found)
            return {"ids": ids_BTK.to(small), "log_p": log_p_BTC}

        return says

    asked = {"asked": "likeliest", "top_k": recipe.top_k, "temperature": recipe.temperature}
    row_bytes = length * ((small.itemsize + 2) * recipe.top_k + 2)
    said = teacher.cache_teacher_outputs(workspace, asked, row_bytes, recipe.packing, ready)

    def teach(batch: MicroBatch) -> Callable[[Tensor], TopKLogProbs]:
        found = said(batch.rows_B)
        device = batch.ids_BT.device
        ids_NK = found["ids"].flatten(0, 1).long().to(device)
        log_p_NC = found["log_p"].flatten(0, 1).to(device)
        return lambda places_N: (ids_NK[places_N], log_p_NC[places_N])

    return teach
