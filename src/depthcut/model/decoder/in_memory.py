"""A model that the caller holds in memory, as a :class:`~depthcut.model.decoder.dense.Dense`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.cut.plan import Unit
from depthcut.model.decoder import layers
from depthcut.model.decoder.dense import LayerSource
from depthcut.model.decoder.prefix_cache import PrefixCache


@dataclass(frozen=True)
class HeldTensor:
    """A tensor in memory, with the interface of a tensor that is read from disk.

    Attributes:
        weight: the tensor.
    """

    weight: Tensor

    def __getitem__(self, index: Any) -> Tensor:
        """Return a part of the tensor; all of it with ``...``."""
        return self.weight[index]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.weight.nbytes

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.weight.shape)


@dataclass
class InMemory:
    """A model in memory; it is never streamed.

    Attributes:
        model: left unchanged.
        prefixes: cached hidden states of earlier passes.
    """

    model: PreTrainedModel
    prefixes: PrefixCache = field(default_factory=PrefixCache)
    streaming: bool = False

    @property
    def depth(self) -> int:
        """Number of layers, L."""
        return len(layers.layer_list(self.model))

    @property
    def config(self) -> PreTrainedConfig:
        """The model's config."""
        return self.model.config

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.model.device.type

    def whole(self) -> nn.Module:
        """Return the model."""
        return self.model

    def stream(self) -> LayerSource:
        """Raise an error: a model in memory is never streamed."""
        raise NotImplementedError("a model in memory is not streamed")

    def tensors(self, layer: int, unit: Unit = "layer") -> Mapping[str, HeldTensor]:
        """Return the tensors of a layer or a sublayer by name."""
        part = layers.layer_list(self.model)[layer]
        unit_part = part.get_submodule(layers.unit_name(part, unit))
        return {name: HeldTensor(weight.detach()) for name, weight in unit_part.named_parameters()}
