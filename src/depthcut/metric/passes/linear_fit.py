"""Least-squares fits between hidden states on both sides of a block.

Legend: N tokens, E edges, D width, T tokens of one sample, S samples, R bootstrap draws, or rank in ``basis_NR``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from depthcut.cut.scores import BOOTSTRAP_DRAWS, Array, Matrix, bootstrap_weights
from depthcut.runtime.progress import track

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.metric.passes.hidden_states import HiddenStates

MapKind = Literal["least_squares", "procrustes"]

FittedMap = Callable[["Tensor"], "Tensor"]
"""Maps the states Y after a block, N x D, to their prediction from the states X before it."""

# A column of X adds no rank if the others explain all but this fraction of its length: states are float32 at best.
RANK_TOLERANCE = 1e-6

# Nor does one this much shorter than the longest: it is constant, and its remainder is rounding error.
LENGTH_TOLERANCE = 1e-12


def collect_states(over: "HiddenStates", wanted: int) -> tuple["Tensor", "Tensor", int]:
    """Return the states of ``wanted`` evenly spaced tokens, except those that are zero or not finite at some edge.

    Returns:
        The states, float32 E x N x D; for each token the number of its sample, counted from 0 over the samples that
            gave any; the number of samples that gave none although some were wanted.
    """
    import torch

    from depthcut.metric.passes import block_scores

    lengths = over.subject.texts.calibration().lengths.tolist()
    chosen_N = torch.arange(wanted) * sum(lengths) // wanted
    states_END, counts, left_out, start = torch.empty(0), list[int](), 0, 0
    for length, sample_TED in zip(lengths, over.samples(), strict=True):
        mine_N = chosen_N[(chosen_N >= start) & (chosen_N < start + length)] - start
        good_NED = sample_TED[mine_N.to(sample_TED.device)]
        good_NED = good_NED[block_scores.usable_tokens(good_NED)].float()
        if start == 0:
            states_END = good_NED.new_empty(good_NED.shape[1], wanted, good_NED.shape[2])
        states_END[:, sum(counts) : sum(counts) + len(good_NED)] = good_NED.transpose(0, 1)
        counts += [len(good_NED)] if len(good_NED) else []
        left_out += len(mine_N) > len(good_NED) == 0
        start += length
    samples_N = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
    return states_END[:, : sum(counts)], samples_N, left_out


def unexplained_shares(
    states_END: "Tensor", sample_N: "Tensor", kind: MapKind, device: str
) -> tuple[Matrix, Matrix, Array]:
    """Return the unexplained share of each block, its standard error and its bootstrap draws, computed on a device."""
    import torch

    edges, samples, sample_N = len(states_END), int(sample_N[-1]) + 1, sample_N.to(device)
    shares, stderrs = ([[0.0] * edges for _ in range(edges)] for _ in range(2))
    draws_RS, draws_REE = (
        torch.from_numpy(bootstrap_weights(samples)).to(device),
        np.zeros((BOOTSTRAP_DRAWS, edges, edges)),
    )
    fitted = {"least_squares": least_squares, "procrustes": procrustes}[kind]
    for start in track(range(edges - 1), "linearity: maps", edges - 1):
        fit, rank = fitted(centred_states(states_END[start].to(device)))
        for stop in range(start + 1, edges):
            y_ND = centred_states(states_END[stop].to(device))
            mend = (len(y_ND) - 1) / (len(y_ND) - 1 - rank)
            off_N, size_N = (fit(y_ND) - y_ND).square().sum(1) * mend, y_ND.square().sum(1)
            off_S, size_S = (size_N.new_zeros(samples).index_add_(0, sample_N, each_N) for each_N in (off_N, size_N))
            shares[start][stop], stderrs[start][stop] = ratio_and_stderr(off_S, size_S)
            draws_REE[:, start, stop] = ((draws_RS @ off_S) / (draws_RS @ size_S)).cpu().numpy()
    return shares, stderrs, draws_REE


def centred_states(states_ND: "Tensor") -> "Tensor":
    """Return the states minus their mean, in float64."""
    states_ND = states_ND.double()
    return states_ND - states_ND.mean(0)


def least_squares(x_ND: "Tensor") -> tuple[FittedMap, int]:
    """Fit any matrix by projecting on the columns of X; return the map and their rank."""
    import torch

    length_D = x_ND.norm(dim=0)
    moves_D = length_D > LENGTH_TOLERANCE * length_D.max()
    unit_ND = x_ND[:, moves_D] / length_D[moves_D]
    basis_NR, r_RR = torch.linalg.qr(unit_ND)
    own_R = r_RR.diagonal().abs() > RANK_TOLERANCE
    if not own_R.all():
        basis_NR, _ = torch.linalg.qr(unit_ND[:, own_R])
    # The residual is taken as a difference, so float32 costs no accuracy and halves the time.
    basis_NR = basis_NR.float()
    return lambda y_ND: basis_NR @ (basis_NR.T @ y_ND.float()), basis_NR.shape[1]


def procrustes(x_ND: "Tensor") -> tuple[FittedMap, int]:
    """Fit a rotation (or reflection) and a scale: ``s X U V^T`` of ``X^T Y = U S V^T``, ``s = tr S / ||X||^2``."""
    import torch

    def fit(y_ND: "Tensor") -> "Tensor":
        u_DD, s_D, vh_DD = torch.linalg.svd(x_ND.T @ y_ND)
        return x_ND @ (u_DD @ vh_DD) * (s_D.sum() / x_ND.square().sum())

    return fit, 0


def ratio_and_stderr(off_S: "Tensor", size_S: "Tensor") -> tuple[float, float]:
    """Return ``sum off / sum size`` and its standard error, one entry per sample."""
    share, samples = off_S.sum() / size_S.sum(), len(off_S)
    spread = (off_S - share * size_S).square().sum() * samples / max(samples - 1, 1)
    return share.item(), (spread.sqrt() / size_S.sum()).item()
