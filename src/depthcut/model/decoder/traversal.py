"""Traversal of the layers by batches: batch by batch in memory, layer by layer if the layers are read from disk.

Legend: B batch, T tokens, D width, L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor, nn

from depthcut.cut.subnetworks import FULL, Subnetwork
from depthcut.model.decoder import inputs
from depthcut.model.decoder.layerwise import LayerwiseForward, start_forward
from depthcut.runtime.progress import track

if TYPE_CHECKING:
    from depthcut.model.decoder.dense import LayerSource

Streams = dict[Subnetwork, Tensor]
"""Hidden states of one batch at one edge, B x T x D each, by sub-network; that of the model itself is ``FULL``."""
Batch = tuple[Tensor, Tensor]
"""Token ids and mask, B x T each."""


class Visitor(Protocol):
    """Takes one batch through the layers.

    Attributes:
        last: the edge at which the batch stops; L after the last layer.
    """

    @property
    def last(self) -> int: ...

    def step(self, forward: LayerwiseForward, index: int, streams: Streams, /) -> Streams:
        """Return the streams after layer ``index``, given those before it."""
        ...


V = TypeVar("V", bound=Visitor)
Start = Callable[[int, torch.device], V]
"""Makes a batch's visitor from the batch's number and the device on which its streams wait for the next layer."""
Arrival = tuple[V, int, LayerwiseForward, Streams]
"""A batch's visitor at an edge, the edge, the batch's forward pass, its streams."""


def traverse(
    source: "nn.Module | LayerSource", batches: Sequence[Batch], start: Start[V], name: str, held: int = 1
) -> Iterator[Arrival[V]]:
    """Take each batch through the layers, and yield it at each edge from 0 to its last one.

    Args:
        source: the model, or a source of layers. Each layer of a source is read once: all batches pass it before the
            next layer.
        batches: at least one.
        start: makes the visitors.
        name: for the progress bar.
        held: number of streams of a batch that wait at an edge, at most.
    """
    if isinstance(source, nn.Module):
        return _batch_by_batch(source, batches, start, name)
    return _layer_by_layer(source, batches, start, name, held)


def _batch_by_batch(model: nn.Module, batches: Sequence[Batch], start: Start[V], name: str) -> Iterator[Arrival[V]]:
    for number, batch in enumerate(track(batches, name, len(batches))):
        forward = start_forward(model, inputs.model_inputs(model, *batch))
        visitor = start(number, forward.h_BTD.device)
        for edge, streams in run_layers(forward, visitor):
            yield visitor, edge, forward, streams


def run_layers(forward: LayerwiseForward, visitor: Visitor) -> Iterator[tuple[int, Streams]]:
    """Take one batch through the layers; yield each edge and the streams there."""
    streams = {FULL: forward.h_BTD}
    yield 0, streams
    for index in range(visitor.last):
        streams = visitor.step(forward, index, streams)
        yield index + 1, streams


def _layer_by_layer(
    source: "LayerSource", batches: Sequence[Batch], start: Start[V], name: str, held: int
) -> Iterator[Arrival[V]]:
    calls = [inputs.model_inputs(source.model, *batch) for batch in batches]
    tokens = sum(ids_BT.numel() for ids_BT, _ in batches)
    device = source.offload_device(start_forward(source.model, calls[0]).h_BTD, tokens, held)
    visitors = [start(number, device) for number in range(len(batches))]
    waiting = [{FULL: start_forward(source.model, call).h_BTD.to(device)} for call in calls]
    returns_tuple = False
    for index in source.stream_layers(name):
        for number, visitor in enumerate(visitors):
            forward = start_forward(source.model, calls[number])
            streams = {key: h_BTD.to(forward.h_BTD.device) for key, h_BTD in waiting[number].items()}
            yield visitor, index, forward, streams
            if index < visitor.last:
                after = visitor.step(forward, index, streams)
                waiting[number] = {key: h_BTD.to(device) for key, h_BTD in after.items()}
                returns_tuple = forward.returns_tuple
        if all(index >= visitor.last for visitor in visitors):
            return
    for number, visitor in enumerate(visitors):
        forward = start_forward(source.model, calls[number])
        forward.returns_tuple = returns_tuple
        streams = {key: h_BTD.to(forward.h_BTD.device) for key, h_BTD in waiting[number].items()}
        yield visitor, len(source.stack), forward, streams
