"""Log-likelihoods of answers, for many cuts of a model at once.

A question's context is read once: its choices are branches of one sequence, and each attends to the context and itself
(a tree mask). The cuts share their common prefixes (:mod:`depthcut.model.decoder.shared_prefix`). Only scored positions
are projected to the vocabulary.

Legend: B rows, T tokens, D width, V vocabulary, U scored positions, P of them per row, S scored tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthcut.cut.subnetworks import Subnetwork
from depthcut.eval.likelihood.packed_requests import PackedRequests, Request, pack_requests
from depthcut.model.decoder import shared_prefix
from depthcut.runtime.progress import track

Answer = tuple[float, bool]
"""The log-likelihood of a continuation in nats, and whether each of its tokens was the most likely one."""


def log_likelihoods(
    model: PreTrainedModel, requests: Sequence[Request], asked: Sequence[Subnetwork], batch: int
) -> dict[Request, list[Answer]]:
    """Answer all requests with each of the sub-networks ``asked``.

    Args:
        model: the full model; layers outside of a sub-network are bypassed.
        requests: may repeat.
        asked: the sub-networks.
        batch: contexts per forward pass.
    """
    answers: dict[Request, list[Answer]] = {}
    packed_batches = list(pack_requests(model, list(dict.fromkeys(requests)), batch))
    with torch.inference_mode():
        for packed in track(packed_batches, "answers", len(packed_batches)):
            forward, ends = shared_prefix.run_subnetworks(model, packed.given, asked)
            forward.inputs = shortened(packed)
            states = (ends[cut][packed.row_BP, packed.place_BP] for cut in asked)
            columns = [score_requests(forward.logits(h_BPD).flatten(0, 1), packed) for h_BPD in states]
            answers |= {request: [each[n] for each in columns] for n, request in enumerate(packed.requests)}
    return answers


def shortened(packed: PackedRequests) -> dict[str, Any]:
    """Return arguments with as many tokens as scored positions, for the head alone."""
    positions = packed.row_BP.shape[1]
    named = {
        name: value[:, :positions] for name, value in packed.given.items() if name in ("input_ids", "position_ids")
    }
    return {**packed.given, "attention_mask": None, **named}


def score_requests(logits_UV: Tensor, packed: PackedRequests) -> list[Answer]:
    """Return the answer to each request of a batch, from the logits of its scored positions."""
    log_p_UV = logits_UV.float().log_softmax(-1)
    log_p_S = log_p_UV[packed.at_S, packed.token_S].double()
    likeliest_S = log_p_UV.argmax(-1)[packed.at_S] == packed.token_S
    count = len(packed.requests)
    sums = torch.zeros(count, dtype=torch.float64, device=log_p_S.device).index_add_(0, packed.request_S, log_p_S)
    missed = torch.zeros(count, device=log_p_S.device).index_add_(0, packed.request_S, (~likeliest_S).float())
    return list(zip(sums.tolist(), (missed == 0).tolist(), strict=True))
