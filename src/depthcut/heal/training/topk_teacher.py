"""The teacher's most likely tokens, computed live or read from disk.

Legend: B sequences, T tokens, N positions, D width, K the teacher's most likely tokens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from depthcut.heal.training import document_mask, teacher
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.objective import (
    base_model,
    decode,
    final_hidden_states,
    positions,
    project_logits,
)
from depthcut.model.decoder import layers

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
