"""Interface of the dense model, which is in memory or streamed from disk one layer at a time."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from depthcut.cut.plan import Unit

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

    from depthcut.model.decoder.prefix_cache import PrefixCache


class LayerSource(Protocol):
    """A model whose layers are loaded one after another."""

    @property
    def model(self) -> "nn.Module": ...

    @property
    def stack(self) -> "nn.ModuleList": ...

    def stream_layers(self, name: str) -> Iterator[int]:
        """Load each layer in turn and yield its index."""
        ...

    def offload_device(self, h_BTD: "Tensor", tokens: int, streams: int = 1) -> "torch.device":
        """Return the device on which hidden states like ``h_BTD``, of ``tokens`` tokens, wait for the next layer."""
        ...


class Dense(Protocol):
    """The dense model, as metrics read it."""

    @property
    def depth(self) -> int:
        """Number of layers, L."""
        ...

    @property
    def config(self) -> "PreTrainedConfig": ...

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        ...

    @property
    def streaming(self) -> bool:
        """Whether the model does not fit, and :meth:`stream` is used instead of :meth:`whole`."""
        ...

    @property
    def prefixes(self) -> "PrefixCache":
        """Cached hidden states of earlier passes, for searches that rescore."""
        ...

    def whole(self) -> "nn.Module":
        """Return the model in memory, loaded once."""
        ...

    def stream(self) -> LayerSource:
        """Return the model, streamed one layer at a time."""
        ...

    def tensors(self, layer: int, unit: Unit = "layer") -> Mapping[str, Any]:
        """Return the tensors of a layer or a sublayer by name, each read from disk when it is indexed."""
        ...
