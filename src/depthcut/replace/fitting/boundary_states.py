"""Hidden states of the dense model on both sides of each gap, a batch at a time, for fitting replacements.

Nothing of a batch is kept beyond the fit's own sums. The dense model is the pruned one with the dropped layers restored
for a while, so only these are loaded. If they do not fit, layers are read from disk one by one.

Legend: B batch, T tokens, D width, N tokens that are not padding.
"""

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.cut.subnetworks import FULL
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import layerwise, traversal
from depthcut.model.surgery import inserted, writers
from depthcut.runtime import devices
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.replace import Site

GapSamples = tuple[int, Tensor, Tensor]
"""The first layer of a gap; for each token the map's input and the gap's update of the stream: float64 N x D."""
GapStates = tuple[int, Tensor, Tensor, Tensor]
"""The first layer of a gap; the map's input, and the stream before and after the gap: B x T x D."""


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
    batches = list(site.texts.calibration().batches(batch))
    streaming = needs_streaming(plan, site)
    seen = 0
    with (
        torch.inference_mode(),
        nullcontext(site.dense.stream()) if streaming else restored_dense(model, plan, site) as source,
    ):
        start = partial(GapRecorder, plan, fused, batches)
        for recorder, edge, _, streams in traversal.traverse(source, batches, start, "replacing", held=3):
            for gap, z_BTD, x_BTD, y_BTD in recorder.reached(edge, streams[FULL]):
                real_BT = recorder.mask_BT.bool().to(x_BTD.device)
                z_ND, x_ND, y_ND = (each[real_BT].double() for each in (z_BTD, x_BTD, y_BTD))
                good_N = (z_ND + x_ND + y_ND).isfinite().all(1)
                seen += int(good_N.sum())
                yield gap, z_ND[good_N], (y_ND - x_ND)[good_N]
    if streaming:
        site.dense.release()
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


def gap_states(forward: layerwise.LayerwiseForward, batch: traversal.Batch, plan: Plan) -> Iterator[GapStates]:
    """Run a batch up to the last gap; yield its states."""
    recorder = GapRecorder(plan, False, [batch], 0, forward.h_BTD.device)
    for edge, streams in traversal.run_layers(forward, recorder):
        yield from recorder.reached(edge, streams[FULL])


class GapRecorder:
    """Records a batch's states at the gaps.

    Args:
        plan: has the gaps.
        fused: whether the map's input is the output of an MLP.
        batches: all batches.
        number: the batch's number.
        place: device that holds states until the end of their gap.
    """

    def __init__(
        self, plan: Plan, fused: bool, batches: Sequence[traversal.Batch], number: int, place: torch.device
    ) -> None:
        self.stops = {stop: start for start, stop in inserted.gap_spans(plan)}
        self.last = max(self.stops)
        self.mask_BT = batches[number][1]
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

    def step(self, forward: layerwise.LayerwiseForward, index: int, streams: traversal.Streams) -> traversal.Streams:
        """Return the stream after layer ``index``; before a gap, record the MLP's output if it is fused."""
        if not (self.fused and index + 1 in self.stops.values()):
            return {FULL: forward.step(index, streams[FULL])}
        after_BTD, z_BTD = writers.step_with_mlp_output(forward, index, streams[FULL])
        self.z[index + 1] = z_BTD.to(self.place)
        return {FULL: after_BTD}
