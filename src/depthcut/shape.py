"""What a model's layers, or their halves, weigh: parameters, weight bytes, KV-cache bytes; from its config alone."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from depthcut.plan import Unit

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from depthcut.loading import Dtype, Quantise

Quantity = Literal["parameters", "weight_bytes", "cache_bytes"]

# Of bitsandbytes' NF4 with double quantisation: weights a scale of one byte, and such scales a float32 scale.
BLOCK, SCALES = 64, 256
# And for each matrix two tables, of 16 and 256 float32, and the mean that was taken off the scales.
TABLES = 4 * (16 + 256 + 1)


@dataclass(frozen=True)
class Shape:
    """A model of ``depth`` layers. A cut by number alone needs no more than ``Shape(depth)``.

    Attributes:
        depth: L.
        parameters: of each layer's unit: the whole layer, its attention or its MLP.
        weight_bytes: of each unit, quantised as the run does it.
        cache_bytes: of each unit, keys and values of one token. A layer with a sliding window holds as much a token,
            of fewer tokens.
        whole: each of the three for the whole model, what lies outside the layers included; what is tied counts once.
    """

    depth: int
    parameters: tuple[int, ...] = ()
    weight_bytes: tuple[int, ...] = ()
    cache_bytes: tuple[int, ...] = ()
    whole: dict[Quantity, int] = field(default_factory=dict[Quantity, int])

    @classmethod
    def of(cls, config: "PreTrainedConfig", unit: Unit, quantise: "Quantise", dtype: "Dtype") -> "Shape":
        """Weigh the model of ``config``; no weight is read.

        Args:
            config: of the model.
            unit: what counts as a layer's: all of it, its attention, or its MLP.
            quantise: as in :meth:`depthcut.checkpoint.Checkpoint.load`.
            dtype: of all that is not quantised, and of the KV cache.

        Raises:
            ValueError: if the model cannot be cut, or its layers have no such unit.
        """
        from depthcut import depth

        model = depth.skeleton(config)
        stem, stack = depth.prefix(model), depth.layers(model)
        homes = [".".join(filter(None, (stem, str(i), depth.unit_name(part, unit)))) for i, part in enumerate(stack)]
        count = {name: parameter.numel() for name, parameter in model.named_parameters()}
        size = dict(weighed(model, quantise, dtype))
        cache = [cached(layer, depth.text_config(config), dtype) for layer in stack]
        return cls(
            depth=len(stack),
            parameters=tuple(sum(count[name] for name in count if name.startswith(f"{home}.")) for home in homes),
            weight_bytes=tuple(sum(size[name] for name in size if name.startswith(f"{home}.")) for home in homes),
            cache_bytes=tuple(0 if unit == "mlp" else each for each in cache),
            whole={
                "parameters": sum(count.values()),
                "weight_bytes": sum(size.values()),
                "cache_bytes": sum(cache),
            },
        )

    def without(self, drop: Collection[int]) -> dict[Quantity, int]:
        """Each of the three for the model without these units."""
        return {key: whole - sum(self.of_units(key)[at] for at in drop) for key, whole in self.whole.items()}

    def of_units(self, quantity: Quantity) -> tuple[int, ...]:
        """One of the three, of each unit."""
        return getattr(self, quantity)


def weighed(model: "PreTrainedModel", quantise: "Quantise", dtype: "Dtype") -> Iterator[tuple[str, int]]:
    """Each parameter's name and its bytes, with those of the quantisation that go with it.

    What is quantised is what transformers hands to bitsandbytes: linear modules, save the head and what is tied.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = get_keys_to_not_convert(model)
    for name, parameter in model.named_parameters():
        home, _, leaf = name.rpartition(".")
        module: Any = model.get_submodule(home)
        linear = leaf == "weight" and (type(module) is nn.Linear or isinstance(module, Conv1D))
        if quantise == "none" or not linear or not should_convert_module(home, skipped):
            yield name, parameter.numel() * size_of(dtype)
        elif quantise == "nf4":
            yield name, nf4(parameter.numel())
        else:
            rows = parameter.shape[1 if isinstance(module, Conv1D) else 0]
            yield name, parameter.numel() + 4 * rows


def nf4(numbers: int) -> int:
    """Bytes of a matrix in NF4 with double quantisation, as bitsandbytes keeps it (``QuantState``)."""
    scales = -(-numbers // BLOCK)
    return -(-numbers // 2) + scales + 4 * -(-scales // SCALES) + TABLES


def cached(layer: "nn.Module", text: "PreTrainedConfig", dtype: "Dtype") -> int:
    """Bytes of one token's keys and values in a layer; 0 for one without an attention."""
    from torch import nn

    from depthcut import depth

    try:
        attention = layer.get_submodule(depth.unit_name(layer, "attention"))
    except ValueError:
        return 0
    keys, values = (getattr(attention, name, None) for name in ("k_proj", "v_proj"))
    if isinstance(keys, nn.Linear) and isinstance(values, nn.Linear):
        return (keys.out_features + values.out_features) * size_of(dtype)
    heads = getattr(attention, "num_kv_heads", None) or getattr(text, "num_key_value_heads", None)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * (heads or text.num_attention_heads) * width * size_of(dtype)


def size_of(dtype: "Dtype") -> int:
    """Bytes of a number."""
    import torch

    return getattr(torch, dtype).itemsize
