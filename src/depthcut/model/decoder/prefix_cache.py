"""Cache of hidden states by sub-network prefix, for searches that rescore."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from depthcut.cut.subnetworks import Subnetwork
from depthcut.runtime import devices


@dataclass
class PrefixCache:
    """Residual streams after prefixes that occur again: in greedy's next round, in evolution's next generation.

    Attributes:
        max_bytes: bytes that may be held; None: a quarter of the free memory on the device of the first stream.
        bytes_held: bytes held at the moment.
        streams: by sequences, edge and prefix.
        layer_passes: number of layer passes so far.
        metric: name of the metric whose text the streams belong to.
    """

    max_bytes: int | None = None
    bytes_held: int = 0
    streams: dict[tuple[tuple[int, int], int, Subnetwork], Tensor] = field(default_factory=dict[Any, Tensor])
    layer_passes: int = 0
    metric: str = ""

    def retain(self, ends: Iterable[Subnetwork], depth_L: int, metric: str) -> None:
        """Discard streams that are no prefix of any of ``ends``, and all streams of another metric."""
        starts = ends if metric == self.metric else ()
        useful = {(edge, cut.before(edge)) for cut in starts for edge in range(depth_L)}
        self.metric = metric
        self.streams = {key: h_BTD for key, h_BTD in self.streams.items() if key[1:] in useful}
        self.bytes_held = sum(h_BTD.nbytes for h_BTD in self.streams.values())

    def lookup(self, span: tuple[int, int]) -> dict[tuple[int, Subnetwork], Tensor]:
        """Return the cached streams of these sequences, by edge and prefix."""
        return {key[1:]: h_BTD for key, h_BTD in self.streams.items() if key[0] == span}

    def store(self, span: tuple[int, int], edge: int, cut: Subnetwork, h_BTD: Tensor) -> None:
        """Cache the stream of these sequences at ``edge`` after the prefix ``cut``, if it fits."""
        if self.max_bytes is None:
            self.max_bytes = devices.free_memory(h_BTD.device.type) // 4
        if self.bytes_held + h_BTD.nbytes <= self.max_bytes:
            self.streams[span, edge, cut] = h_BTD
            self.bytes_held += h_BTD.nbytes
