"""What every metric of blocks starts from: one pass over the calibration text, all L + 1 edges of the residual stream.

Legend: N tokens of one sample, E edges (layers + 1), D width, B batch, T tokens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from depthcut import depth, forward
from depthcut.progress import track
from depthcut.scores import Scores

if TYPE_CHECKING:
    from depthcut.lab import Lab

Token = Literal["last", "all"]
Compare = Callable[[Tensor], Tensor]
"""From the states of some tokens at all edges, float64 N x E x D, to a value for each pair of edges, N x E x E."""


@dataclass(frozen=True)
class Pass:
    """One pass over the calibration text.

    Attributes:
        lab: holds the model and the text.
        removed: layers that are bypassed.
        batch: sequences a forward pass.
        token: compare the states of each sample's last token, or of all.
        name: of the metric, for messages.
    """

    lab: "Lab"
    removed: tuple[int, ...]
    batch: int
    token: Token
    name: str

    def samples(self) -> Iterator[Tensor]:
        """The states of each sample, float64 N x E x D."""
        model, text = self.lab.dense(), self.lab.calibration()
        with torch.inference_mode(), depth.bypass(model, self.removed):
            for ids_BT, mask_BT in track(text.batches(self.batch), self.name, math.ceil(len(text) / self.batch)):
                yield from sample_states(model, ids_BT, mask_BT, self.token)


def compared(over: Pass, compare: Compare) -> Scores:
    """Score all blocks: ``compare`` each pair of edges at each token, average over a sample, then over the samples.

    The decoder stack runs once, without the head. A token whose state is zero or not finite at some edge is left out;
    so is a sample of which no token is left.

    Raises:
        ValueError: if no sample is left.
    """
    means: list[Tensor] = []
    left_out = 0
    for states_NED in over.samples():
        good_NED = states_NED[usable(states_NED)]
        if len(good_NED):
            means.append(compare(good_NED).mean(0).triu(1).cpu())
        else:
            left_out += 1
    if not means:
        raise ValueError(f"metric={over.name}: none of the {left_out} calibration samples gave finite hidden states")
    mean_SEE = torch.stack(means)
    stderr_EE = mean_SEE.std(0, correction=min(1, len(means) - 1)) / math.sqrt(len(means))
    return Scores.of_blocks(mean_SEE.mean(0).tolist(), stderr_EE.tolist(), len(means), left_out)


def sample_states(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, token: Token) -> Iterator[Tensor]:
    """For each sequence of a batch its states at all edges, float64 N x E x D: of its last token or of all."""
    given = forward.inputs(model, ids_BT, mask_BT)
    device = given["input_ids"].device
    mask_BT = mask_BT.to(device)
    rows_B = torch.arange(len(ids_BT), device=device)
    last_B = (mask_BT * torch.arange(ids_BT.shape[1], device=device)).argmax(1)
    seen: dict[int, Tensor] = {}

    def see(edge: int, h_BTD: Tensor) -> None:
        seen[edge] = h_BTD[rows_B, last_B][:, None] if token == "last" else h_BTD

    with depth.watch(model, see):
        depth.decoder(model)(**given)
    for row in range(len(ids_BT)):
        states_NED = torch.stack([h_BTD[row].to(seen[0].device) for _, h_BTD in sorted(seen.items())], dim=1)
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
