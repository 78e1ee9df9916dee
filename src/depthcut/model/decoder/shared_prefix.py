"""Evaluation of many sub-networks (models without some layers or sublayers) in one pass that shares their prefixes.

Two sub-networks are identical up to the first layer at which they differ, so each common prefix is computed once. For
all models without one layer this takes L + L(L-1)/2 layer passes instead of L(L-1), and each layer's weights are read
once per batch. In addition, the head runs once per sub-network.

Legend: B batch, T tokens, D width, V vocabulary, K sub-networks, N sequences.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from depthcut.cut import subnetworks
from depthcut.cut.plan import Unit
from depthcut.cut.subnetworks import FULL, Subnetwork
from depthcut.model.decoder import adapters, inputs, layerwise
from depthcut.model.decoder.measurement import Measurement, SequenceBatch, sequence_sums
from depthcut.model.decoder.prefix_cache import PrefixCache
from depthcut.model.decoder.traversal import Streams, traverse

if TYPE_CHECKING:
    from depthcut.model.decoder.dense import Dense


def measure_subnetworks(
    dense: "Dense", drops: Sequence[tuple[int, ...]], unit: Unit, measurement: Measurement
) -> tuple[Tensor, Tensor]:
    """Measure the model without each of ``drops``.

    Args:
        dense: the model.
        drops: for each sub-network, the units to drop.
        unit: layers, or their attentions or MLPs.
        measurement: the measure and the sequences.

    Returns:
        For each sub-network and sequence the sum of the measure over its tokens (float64 K x N), and the number of
            these tokens (N), both on the host.
    """
    requested = subnetworks.subnetworks_without(drops, unit)
    ends = [*requested, FULL] if measurement.needs_dense and FULL not in requested else requested
    cache = PrefixCache(max_bytes=0) if dense.streaming else dense.prefixes
    cache.retain(ends, dense.depth, measurement.name)

    def start(number: int, device: torch.device) -> PrefixSteps:
        del device
        return PrefixSteps(ends, dense.depth, cache, measurement.batches[number])

    source = dense.stream() if dense.streaming else dense.whole()
    batches = [(batch.ids_BT, batch.mask_BT) for batch in measurement.batches]
    held = max(map(len, required_prefixes(ends, dense.depth, ())))
    values: list[Tensor] = []
    counts: list[Tensor] = []
    with torch.inference_mode():
        for steps, edge, forward, streams in traverse(source, batches, start, measurement.name, held):
            if edge == dense.depth:
                targets_BT = steps.batch.targets_BT
                values.append(sequence_sums(forward, streams, requested, measurement, targets_BT))
                counts.append((targets_BT != inputs.NO_TARGET).sum(1))
    return torch.cat(values, dim=1), torch.cat(counts)


class PrefixSteps:
    """Takes a batch through all sub-networks, each common prefix once.

    Args:
        ends: the sub-networks.
        depth_L: L.
        cache: holds streams of earlier passes, and takes those of this one.
        batch: the sequences.
    """

    def __init__(self, ends: Sequence[Subnetwork], depth_L: int, cache: PrefixCache, batch: SequenceBatch) -> None:
        self.batch, self.cache, self.last = batch, cache, depth_L
        self.cached = cache.lookup(batch.span)
        self.wanted = required_prefixes(ends, depth_L, self.cached)

    def step(self, forward: layerwise.LayerwiseForward, index: int, before: Streams) -> Streams:
        """Return the streams after layer ``index``: cached ones, and new ones, which are cached."""
        edge = index + 1
        after = {cut: self.cached[edge, cut] for cut in self.wanted[edge] if (edge, cut) in self.cached}
        for cut in self.wanted[edge]:
            if cut not in after:
                after[cut] = step_subnetwork(forward, index, cut, before)
                self.cache.layer_passes += after[cut] is not before[cut.before(index)]
                self.cache.store(self.batch.span, edge, cut, after[cut])
        return after


def run_subnetworks(
    model: nn.Module, given: dict[str, Any], ends: Sequence[Subnetwork]
) -> tuple[layerwise.LayerwiseForward, Streams]:
    """Run one batch, given as keyword arguments, through ``model`` and all its sub-networks.

    Returns:
        The forward pass, and the hidden state after the last layer of each sub-network.
    """
    forward = layerwise.start_forward(model, given)
    streams = {FULL: forward.h_BTD}
    for index, wanted in enumerate(required_prefixes(ends, len(forward.stack), ())[1:]):
        streams = {cut: step_subnetwork(forward, index, cut, streams) for cut in wanted}
    return forward, streams


def required_prefixes(
    ends: Iterable[Subnetwork], depth_L: int, cached: Collection[tuple[int, Subnetwork]]
) -> list[list[Subnetwork]]:
    """Return, for each edge, the prefixes that are needed to reach each of ``ends`` at the last edge.

    Args:
        ends: the sub-networks.
        depth_L: L.
        cached: edges and prefixes whose streams are cached; nothing before them is needed to reach them.
    """
    wanted: list[dict[Subnetwork, None]] = [{} for _ in range(depth_L + 1)]
    wanted[-1] = dict.fromkeys(ends)
    for edge in range(depth_L, 0, -1):
        for cut in wanted[edge]:
            if (edge, cut) not in cached:
                wanted[edge - 1][cut.before(edge - 1)] = None
    return [list(each) for each in wanted]


def step_subnetwork(
    forward: layerwise.LayerwiseForward, index: int, cut: Subnetwork, before: dict[Subnetwork, Tensor]
) -> Tensor:
    """Return the hidden state after layer ``index`` for the prefix ``cut``, given those before that layer."""
    h_BTD, dropped = before[cut.before(index)], cut.drop[-1:] == (index,)
    if dropped and cut.unit == "layer":
        return h_BTD
    with adapters.active_adapter(forward.stack[index], cut.adapter):
        return forward.step(index, h_BTD, cut.unit if dropped else None)
