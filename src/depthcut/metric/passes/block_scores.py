"""Scores of all blocks from hidden states, with bootstrap intervals.

Legend: N tokens of one sample, E edges, D width, S samples, R bootstrap draws.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores, bootstrap_weights
from depthcut.metric.passes.hidden_states import HiddenStates
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    pass

STOP_CHECKS = frozenset(2**k for k in range(4, 30))  # numbers of samples at which to check whether they suffice

EdgeComparison = Callable[[Tensor], Tensor]
"""Maps the states of tokens at all edges, float64 N x E x D, to a value for each pair of edges, N x E x E."""


def score_blocks(over: HiddenStates, compare: EdgeComparison) -> Scores:
    """Score all blocks: ``compare`` each pair of edges at each token, average over a sample, then over the samples.

    The decoder stack runs once, without the head. Tokens with a zero or non-finite state at some edge are skipped, as
    are samples without any other token.

    Raises:
        UserError: if no sample is left.
    """
    means: list[Tensor] = []
    left_out = 0
    for states_NED in over.samples():
        good_NED = states_NED[usable_tokens(states_NED)]
        if len(good_NED):
            means.append(mean_over_tokens(good_NED, compare, over.unit).cpu())
        else:
            left_out += 1
        if (
            over.until is not None
            and len(means) in STOP_CHECKS
            and is_block_certain(bootstrap_scores(torch.stack(means), left_out), over)
        ):
            break
    if not means:
        raise UserError(f"metric={over.name}: none of the {left_out} calibration samples produced finite hidden states")
    return bootstrap_scores(torch.stack(means), left_out)


def mean_over_tokens(states_NED: Tensor, compare: EdgeComparison, unit: Unit) -> Tensor:
    """Return the mean over tokens for each pair of edges, E x E, or for each sublayer's pair of edges."""
    if unit == "layer":
        return compare(states_NED).mean(0).triu(1)
    pairs_PED = states_NED.reshape(-1, 2, states_NED.shape[-1])
    return compare(pairs_PED)[:, 0, 1].reshape(len(states_NED), -1).mean(0)


def bootstrap_scores(values_S: Tensor, left_out: int) -> Scores:
    """Return scores from each sample's values, S x E x E or S x K, with a Bayesian bootstrap over the samples."""
    samples = len(values_S)
    stderr = (values_S.std(0, correction=min(1, samples - 1)) / math.sqrt(samples)).tolist()
    weight_RS = torch.from_numpy(bootstrap_weights(samples))
    draws_R = torch.tensordot(weight_RS / weight_RS.sum(1, keepdim=True), values_S, dims=1).numpy()
    kind = Scores.of_blocks if values_S.ndim == 3 else Scores.of_layers
    return kind(values_S.mean(0).tolist(), stderr, samples, left_out, draws_R)


def is_block_certain(found: Scores, over: HiddenStates) -> bool:
    """Return whether one start of the wanted block wins often enough."""
    assert over.until is not None
    starts, n = over.subject.wanted()
    return max(found.wins(starts, n).values(), default=0.0) >= over.until


def usable_tokens(states_NED: Tensor) -> Tensor:
    """Return a mask of the tokens whose state at every edge is finite and not zero."""
    norm_NE = states_NED.norm(dim=-1)
    return (norm_NE.isfinite() & (norm_NE > 0)).all(1)


def pairwise_cosines(states_NED: Tensor) -> Tensor:
    """Return the cosine between all pairs of edges, N x E x E, clamped to [-1, 1].

    In float64: at small angles, the rounding error of bfloat16 is as large as the distance.
    """
    unit_NED = states_NED / states_NED.norm(dim=-1, keepdim=True)
    return (unit_NED @ unit_NED.transpose(1, 2)).clamp(-1, 1)
