"""Hidden states for block metrics: one pass over the calibration text, all L + 1 edges of the residual stream.

Legend: N tokens of one sample, E edges, D width, B batch, T tokens, S samples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores, bootstrap_weights
from depthcut.cut.subnetworks import FULL
from depthcut.model.decoder import layerwise, traversal
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.metric import Subject

TokenSelection = Literal["last", "all"]
EdgeComparison = Callable[[Tensor], Tensor]
"""Maps the states of tokens at all edges, float64 N x E x D, to a value for each pair of edges, N x E x E."""
STOP_CHECKS = frozenset(2**k for k in range(4, 30))  # numbers of samples at which to check whether they suffice


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """One pass over the calibration text.

    Edges lie between the remaining layers. If the unit is a sublayer, they come in pairs instead: before and after each
    remaining attention or MLP.

    Attributes:
        subject: holds the model and the text.
        removed: units already removed.
        unit: layers, or their attentions or MLPs.
        batch: sequences per forward pass.
        token: compare the states of each sample's last token, or of all tokens.
        name: name of the metric, for messages.
        until: stop as soon as the wanted block wins this share of bootstrap draws; None never stops early.
    """

    subject: "Subject"
    name: str
    batch: int
    token: TokenSelection
    removed: tuple[int, ...] = ()
    unit: Unit = "layer"
    until: float | None = None

    def samples(self) -> Iterator[Tensor]:
        """Yield the states of each sample, float64 N x E x D."""
        dense = self.subject.dense
        batches = list(self.subject.texts.calibration().batches(self.batch))
        source, place = (dense.stream(), torch.device("cpu")) if dense.streaming else (dense.whole(), None)
        start = partial(StateRecorder, self, batches, place)
        with torch.inference_mode():
            for recorder, edge, _, streams in traversal.traverse(source, batches, start, self.name):
                if edge == recorder.last:
                    yield from recorder.samples(streams[FULL])


class StateRecorder:
    """Records a batch's states at all edges.

    Args:
        over: names the states to record.
        batches: all batches.
        place: the device to keep states on; None: where they are computed.
        number: the batch's number.
    """

    def __init__(
        self,
        over: HiddenStates,
        batches: Sequence[traversal.Batch],
        place: torch.device | None,
        number: int,
        _: torch.device,
    ) -> None:
        self.over, self.place = over, place
        self.mask_BT = batches[number][1]
        self.last = over.subject.dense.depth
        self.states: list[Tensor] = []

    def step(self, forward: layerwise.LayerwiseForward, index: int, streams: traversal.Streams) -> traversal.Streams:
        """Record the states at a layer; return the residual stream after it."""
        seen, h_BTD = self.layer_states(forward, index, streams[FULL])
        self.states += [self.picked(state_BTD) for state_BTD in seen]
        return {FULL: h_BTD}

    def layer_states(
        self, forward: layerwise.LayerwiseForward, index: int, h_BTD: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return the states to record at a layer, and the residual stream after it."""
        unit = self.over.unit
        if index in self.over.removed:
            return [], h_BTD if unit == "layer" else forward.step(index, h_BTD, unit)
        after_BTD = forward.step(index, h_BTD)
        if unit == "layer":
            return [h_BTD], after_BTD
        between_BTD = forward.step(index, h_BTD, without="mlp")
        return [h_BTD, between_BTD] if unit == "attention" else [between_BTD, after_BTD], after_BTD

    def picked(self, h_BTD: Tensor) -> Tensor:
        """Return the states of the compared tokens: B x 1 x D or B x T x D."""
        if self.over.token == "last":
            last_B = (self.mask_BT * torch.arange(self.mask_BT.shape[1])).argmax(1).to(h_BTD.device)
            h_BTD = h_BTD[torch.arange(len(last_B), device=h_BTD.device), last_B][:, None]
        return h_BTD if self.place is None else h_BTD.to(self.place)

    def samples(self, h_BTD: Tensor) -> Iterator[Tensor]:
        """Yield the states of each sample, without padding; for whole layers, append the last edge's ``h_BTD``."""
        states = [*self.states, self.picked(h_BTD)] if self.over.unit == "layer" else self.states
        self.states = []
        for row, mask_T in enumerate(self.mask_BT):
            states_NED = torch.stack([state_BND[row] for state_BND in states], dim=1)
            real_N = mask_T.bool().to(states_NED.device)
            yield (states_NED if self.over.token == "last" else states_NED[real_N]).double()


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
