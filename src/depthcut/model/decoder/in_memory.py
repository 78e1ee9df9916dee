"""A model that the caller holds in memory, as a :class:`~depthcut.model.decoder.dense.Dense`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.cut.plan import Unit
from depthcut.model.decoder import layers
from depthcut.model.decoder.dense import LayerSource
from depthcut.model.decoder.shared_prefix import PrefixCache


@dataclass
class InMemory:
    """A model in memory; it is never streamed.

    Attributes:
        model: left as it was found.
        prefixes: hidden states of earlier passes.
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
        """Refuse: a model in memory is never streamed."""
        raise NotImplementedError("a model in memory is not streamed")

    def tensors(self, layer: int, unit: Unit = "layer") -> Mapping[str, Tensor]:
        """Return the tensors of a layer or a sublayer by name."""
        part = layers.layer_list(self.model)[layer]
        prefix = "" if unit == "layer" else f"{layers.unit_name(part, unit)}."
        return {name: tensor for name, tensor in part.state_dict().items() if name.startswith(prefix)}
