"""Distillation from the dense model's k most likely next tokens (arXiv:1503.02531).

Legend: B sequences, T tokens, N positions, D width, V vocabulary, K the teacher's most likely tokens.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.heal.training import adapters, teacher
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.low_rank_recipe import AdapterRecipe
from depthcut.heal.training.objective import (
    Objective,
    chunked_loss,
    decode,
    next_token_loss,
    next_tokens,
    summed_cross_entropy,
)
from depthcut.heal.training.topk_teacher import (
    Distillation,
    TopKTeacher,
    cached_topk_teacher,
    live_topk_teacher,
    remaining_log_prob,
)
from depthcut.model.decoder import layers
from depthcut.model.decoder.inputs import NO_TARGET
from depthcut.runtime import verified

if TYPE_CHECKING:
    from depthcut.heal import Workspace


def train_distilled(
    model: nn.Module, plan: Plan, workspace: "Workspace", recipe: AdapterRecipe, aim: Distillation
) -> nn.Module:
    """Train adapters on ``model`` towards the dense model, or attach the trained ones.

    Raises:
        UserError: if the teacher or its cache does not fit.
    """
    done = verified.is_verified(workspace.folder / "adapter", workspace.digest) or not recipe.reached(
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
