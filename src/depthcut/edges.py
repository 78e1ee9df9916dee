"""What every metric of blocks starts from: one pass over the calibration text, all L + 1 edges of the residual stream.

Legend: N tokens of one sample, E edges (layers + 1), D width, B batch, T tokens.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from depthcut import depth
from depthcut.progress import track
from depthcut.scores import Scores
from depthcut.text import Tokens

Token = Literal["last", "all"]
Compare = Callable[[Tensor], Tensor]
"""From the states of some tokens at all edges, float64 N x E x D, to a value for each pair of edges, N x E x E."""


def compared(model: nn.Module, text: Tokens, batch: int, token: Token, compare: Compare, name: str) -> Scores:
    """Score all blocks: ``compare`` each pair of edges at each token, average over a sample, then over the samples.

    The decoder stack runs once, without the head. A token whose state is zero or not finite at some edge is left out;
    so is a sample of which no token is left.

    Raises:
        ValueError: if no sample is left.
    """
    edges = len(depth.layers(model)) + 1
    total = torch.zeros(edges, edges, dtype=torch.float64)
    squares = torch.zeros_like(total)
    samples = left_out = 0
    with torch.inference_mode():
        for ids_BT, mask_BT in track(text.batches(batch), name, math.ceil(len(text) / batch)):
            for states_NED in sample_states(model, ids_BT, mask_BT, token, edges):
                good_NED = states_NED[usable(states_NED)]
                if not len(good_NED):
                    left_out += 1
                    continue
                mean_EE = compare(good_NED).mean(0).cpu()
                total += mean_EE
                squares += mean_EE.square()
                samples += 1
    if not samples:
        raise ValueError(f"metric={name}: none of the {left_out} calibration samples gave finite hidden states")
    return summary(total, squares, samples, left_out)


def sample_states(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, token: Token, edges: int) -> Iterator[Tensor]:
    """For each sequence of a batch its states at all edges, float64 N x E x D: of its last token or of all."""
    device = next(model.parameters()).device
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    rows_B = torch.arange(len(ids_BT), device=device)
    last_B = (mask_BT * torch.arange(ids_BT.shape[1], device=device)).argmax(1)
    seen: dict[int, Tensor] = {}

    def see(edge: int, h_BTD: Tensor) -> None:
        seen[edge] = h_BTD[rows_B, last_B][:, None] if token == "last" else h_BTD

    with depth.watch(model, see):
        depth.decoder(model)(input_ids=ids_BT, attention_mask=None if mask_BT.all() else mask_BT, use_cache=False)
    assert len(seen) == edges
    for row in range(len(ids_BT)):
        states_NED = torch.stack([seen[edge][row].to(seen[0].device) for edge in range(edges)], dim=1)
        yield (states_NED if token == "last" else states_NED[mask_BT[row].bool()]).double()


def usable(states_NED: Tensor) -> Tensor:
    """Which tokens have a state at every edge that is finite and not zero."""
    norm_NE = states_NED.norm(dim=-1)
    return (norm_NE.isfinite() & (norm_NE > 0)).all(1)


def cosines(states_NED: Tensor) -> Tensor:
    """Cosine between all pairs of edges, N x E x E, clamped to [-1, 1].

    In float64: at small angles the rounding of bfloat16 is as large as the distance.
    """
    unit_NED = states_NED / states_NED.norm(dim=-1, keepdim=True)
    return (unit_NED @ unit_NED.transpose(1, 2)).clamp(-1, 1)


def summary(total_EE: Tensor, squares_EE: Tensor, samples: int, left_out: int) -> Scores:
    """Means and standard errors out of sums and sums of squares, above the diagonal."""
    mean_EE = (total_EE / samples).triu(1)
    spread_EE = (squares_EE / samples - (total_EE / samples).square()).clamp(min=0).triu(1)
    stderr_EE = (spread_EE / max(samples - 1, 1)).sqrt()
    return Scores.of_blocks(mean_EE.tolist(), stderr_EE.tolist(), samples, left_out)
