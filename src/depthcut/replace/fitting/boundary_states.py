"""Hidden states of the dense model on both sides of each gap, a batch at a time, for fitting replacements.

Nothing of a batch is kept beyond the fit's own sums. The dense model is the pruned one with the dropped layers restored
for a while, so only these are loaded. If they do not fit, layers are read from disk one by one.

Legend: B batch, T tokens, D width, N tokens that are not padding.
"""

import copy
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder import inputs, layerwise
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.surgery import inserted, writers
from depthcut.runtime import devices
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track

if TYPE_CHECKING:
    from depthcut.replace import Site

GapSamples = tuple[int, Tensor, Tensor]
"""The first layer of a gap; for each token the map's input and the gap's update of the stream: float64 N x D."""
GapStates = tuple[int, Tensor, Tensor, Tensor]
"""The first layer of a gap; the map's input, and the stream before and after the gap: B x T x D."""
MaskedGapStates = Iterator[tuple[Tensor, GapStates]]
"""Gap states with their batch's mask."""


@contextmanager
def restored_dense(model: nn.Module, plan: Plan, site: "Site") -> Generator[nn.Module]:
    """Make ``model`` the dense one inside the ``with``; then restore the pruned one."""
    form = site.dense
    rest = Plan(plan.depth, plan.keep)
    spare = site.dense.checkpoint.load(rest, quantise=form.quantise, dtype=form.dtype, device=site.dense.device)
    stack, config = (
        decoder_layers.layer_list(model),
        copy.copy(decoder_layers.text_config(decoder_layers.decoder_stack(model).config)),
    )
    layers = dict(zip(plan.keep, stack, strict=True)) | dict(
        zip(plan.drop, decoder_layers.layer_list(spare), strict=True)
    )
    del spare
    dense = nn.ModuleList(layers[number] for number in range(plan.depth))
    inserted.install_layers_like(model, dense, decoder_layers.meta_model(site.dense.config))
    try:
        yield model
    finally:
        decoder_layers.install_layers(model, stack, config)


def gap_samples(model: nn.Module, plan: Plan, site: "Site", batch: int, fused: bool = False) -> Iterator[GapSamples]:
    """Yield the samples of each gap in one pass over the calibration text.

    Args:
        model: the model pruned by ``plan``.
        plan: its gaps are sampled.
        site: holds the text and the dropped layers.
        batch: sequences per forward pass.
        fused: the map's input is the output of the MLP before the gap instead of the stream.

    Raises:
        UserError: if no token gives finite states.
    """
    ask = partial(_states_by_layer, site) if needs_streaming(plan, site) else partial(_states_by_batch, model, site)
    seen = 0
    with torch.inference_mode():
        for mask_BT, (start, z_BTD, x_BTD, y_BTD) in ask(plan, batch, fused):
            real_BT = mask_BT.bool().to(x_BTD.device)
            z_ND, x_ND, y_ND = (each[real_BT].double() for each in (z_BTD, x_BTD, y_BTD))
            good_N = (z_ND + x_ND + y_ND).isfinite().all(1)
            seen += int(good_N.sum())
            yield start, z_ND[good_N], (y_ND - x_ND)[good_N]
    if not seen:
        raise UserError(
            "replace: none of the calibration tokens produced finite hidden states, so nothing can be fitted"
        )


def needs_streaming(plan: Plan, site: "Site") -> bool:
    """Return whether to read the dropped layers from disk one by one: they do not fit, or ``stream`` asks for it."""
    asked = site.dense.policy
    if asked != "auto":
        return asked == "always"
    weights = site.dense.sizes("layer").weight_bytes
    return not devices.fits_in_free_memory(sum(weights[number] for number in plan.drop), site.dense.device)


def _states_by_batch(model: nn.Module, site: "Site", plan: Plan, batch: int, fused: bool) -> MaskedGapStates:
    """Run each batch up to the last gap before the next batch."""
    text = site.texts.calibration()
    with restored_dense(model, plan, site) as dense:
        for ids_BT, mask_BT in track(text.batches(batch), "replacing", math.ceil(len(text) / batch)):
            way = layerwise.start_forward(dense, inputs.model_inputs(dense, ids_BT, mask_BT))
            for side in gap_states(way, plan, fused):
                yield mask_BT, side


def _states_by_layer(site: "Site", plan: Plan, batch: int, fused: bool) -> MaskedGapStates:
    """Run all batches through a layer before reading the next one; their streams are held."""
    source, batches = site.dense.stream(), list(site.texts.calibration().batches(batch))
    calls = [inputs.model_inputs(source.model, *each) for each in batches]
    tokens = sum(mask_BT.numel() for _, mask_BT in batches)
    place = source.offload_device(layerwise.start_forward(source.model, calls[0]).h_BTD, tokens, 3)
    streams = [layerwise.start_forward(source.model, call).h_BTD.to(place) for call in calls]
    crossings = [GapRecorder(plan, fused, place) for _ in batches]
    for edge in source.stream_layers("replacing"):
        for number, (call, (_, mask_BT)) in enumerate(zip(calls, batches, strict=True)):
            way = layerwise.start_forward(source.model, call)
            h_BTD = streams[number].to(way.h_BTD.device)
            yield from ((mask_BT, side) for side in crossings[number].reached(edge, h_BTD))
            streams[number] = crossings[number].passed(way, edge, h_BTD).to(place)
        if edge == crossings[0].last:
            break
    else:
        for crossing, h_BTD, (_, mask_BT) in zip(crossings, streams, batches, strict=True):
            yield from ((mask_BT, side) for side in crossing.reached(plan.depth, h_BTD))
    site.dense.release()


def gap_states(way: layerwise.LayerwiseForward, plan: Plan, fused: bool = False) -> Iterator[GapStates]:
    """Run a batch up to the last gap; yield its states."""
    crossing, h_BTD = GapRecorder(plan, fused, way.h_BTD.device), way.h_BTD
    for edge in range(crossing.last + 1):
        yield from crossing.reached(edge, h_BTD)
        h_BTD = crossing.passed(way, edge, h_BTD)


class GapRecorder:
    """Records a batch's states at the gaps.

    Args:
        plan: has the gaps.
        fused: whether the map's input is the output of an MLP.
        place: device that holds states until the end of their gap.
    """

    def __init__(self, plan: Plan, fused: bool, place: torch.device) -> None:
        self.stops = {stop: start for start, stop in inserted.gap_spans(plan)}
        self.last = max(self.stops)
        self.fused = fused
        self.place = place
        self.x: dict[int, Tensor] = {}
        self.z: dict[int, Tensor] = {}

    def reached(self, edge: int, h_BTD: Tensor) -> Iterator[GapStates]:
        """Take the stream before layer ``edge``: after a gap, yield its states; before one, record the stream."""
        if edge in self.stops:
            start, here = self.stops[edge], h_BTD.device
            x_BTD = self.x.pop(start).to(here)
            yield start, self.z.pop(start).to(here) if self.fused else x_BTD, x_BTD, h_BTD
        if edge in self.stops.values():
            self.x[edge] = h_BTD.to(self.place)

    def passed(self, way: layerwise.LayerwiseForward, edge: int, h_BTD: Tensor) -> Tensor:
        """Return the stream after layer ``edge``; after the last gap nothing is run."""
        if edge == self.last:
            return h_BTD
        if not (self.fused and edge + 1 in self.stops.values()):
            return way.step(edge, h_BTD)
        after_BTD, z_BTD = writers.step_with_mlp_output(way, edge, h_BTD)
        self.z[edge + 1] = z_BTD.to(self.place)
        return after_BTD
