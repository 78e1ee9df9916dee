"""Hidden states for block metrics: one pass over the calibration text, all L + 1 edges of the residual stream.

Legend: N tokens of one sample, E edges, D width, B batch, T tokens, S samples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores, bootstrap_weights
from depthcut.model.decoder import inputs, layerwise
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track

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
        with torch.inference_mode():
            yield from self._layer_by_layer() if self.subject.dense.streaming else self._batch_by_batch()

    def _batch_by_batch(self) -> Iterator[Tensor]:
        model, text = self.subject.dense.whole(), self.subject.texts.calibration()
        for ids_BT, mask_BT in track(text.batches(self.batch), self.name, math.ceil(len(text) / self.batch)):
            way = layerwise.start_forward(model, inputs.model_inputs(model, ids_BT, mask_BT))
            h_BTD, states = way.h_BTD, list[Tensor]()
            for index in range(len(way.stack)):
                seen, h_BTD = self.passed(way, index, h_BTD)
                states += [self.picked(state_BTD, mask_BT) for state_BTD in seen]
            yield from self.divided(states, h_BTD, mask_BT)

    def _layer_by_layer(self) -> Iterator[Tensor]:
        """Run all batches through a layer before reading the next one; keep the compared states on the host."""
        source, batches = self.subject.dense.stream(), list(self.subject.texts.calibration().batches(self.batch))
        calls = [inputs.model_inputs(source.model, *batch) for batch in batches]
        tokens = sum(mask_BT.numel() for _, mask_BT in batches)
        place = source.offload_device(layerwise.start_forward(source.model, calls[0]).h_BTD, tokens)
        streams = [layerwise.start_forward(source.model, call).h_BTD.to(place) for call in calls]
        states: list[list[Tensor]] = [[] for _ in batches]
        for index in source.stream_layers(self.name):
            for batch, (call, (_, mask_BT)) in enumerate(zip(calls, batches, strict=True)):
                way = layerwise.start_forward(source.model, call)
                seen, h_BTD = self.passed(way, index, streams[batch].to(way.h_BTD.device))
                states[batch] += [self.picked(state_BTD, mask_BT).cpu() for state_BTD in seen]
                streams[batch] = h_BTD.to(place)
        for batch, (_, mask_BT) in enumerate(batches):
            yield from self.divided(states[batch], streams[batch].cpu(), mask_BT)

    def passed(self, way: layerwise.LayerwiseForward, index: int, h_BTD: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the states to record at a layer, and the residual stream after it."""
        if index in self.removed:
            return [], h_BTD if self.unit == "layer" else way.step(index, h_BTD, self.unit)
        after_BTD = way.step(index, h_BTD)
        if self.unit == "layer":
            return [h_BTD], after_BTD
        between_BTD = way.step(index, h_BTD, without="mlp")
        return [h_BTD, between_BTD] if self.unit == "attention" else [between_BTD, after_BTD], after_BTD

    def picked(self, h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the states of the compared tokens: B x 1 x D or B x T x D."""
        if self.token == "all":
            return h_BTD
        last_B = (mask_BT * torch.arange(mask_BT.shape[1])).argmax(1).to(h_BTD.device)
        return h_BTD[torch.arange(len(last_B), device=h_BTD.device), last_B][:, None]

    def divided(self, states: list[Tensor], h_BTD: Tensor, mask_BT: Tensor) -> Iterator[Tensor]:
        """Yield the states of a batch by sample, without padding; for whole layers, append the last edge."""
        if self.unit == "layer":
            states = [*states, self.picked(h_BTD, mask_BT)]
        for row in range(len(mask_BT)):
            states_NED = torch.stack([state_BND[row] for state_BND in states], dim=1)
            real_N = mask_BT[row].bool().to(states_NED.device)
            yield (states_NED if self.token == "last" else states_NED[real_N]).double()


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
