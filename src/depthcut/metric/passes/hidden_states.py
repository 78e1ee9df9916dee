"""Hidden states for block metrics: one pass over the calibration text, all L + 1 edges of the residual stream.

Legend: N tokens of one sample, E edges, D width, B batch, T tokens, S samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from depthcut.cut.plan import Unit
from depthcut.cut.subnetworks import FULL
from depthcut.model.decoder import layerwise, traversal

if TYPE_CHECKING:
    from depthcut.metric import Subject

TokenSelection = Literal["last", "all"]


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
