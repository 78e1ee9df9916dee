"""Bytes and FLOPs of a model's modules."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from depthcut.model.decoder.quantisation import Dtype, Quantise

# bitsandbytes' NF4 with double quantisation: weights per scale of one byte, and such scales per float32 scale.
NF4_BLOCK, NF4_SCALES = 64, 256

# Per matrix: two tables, of 16 and 256 float32, and the mean that was subtracted from the scales.
NF4_TABLE_BYTES = 4 * (16 + 256 + 1)


def sum_by_prefix(prefixes: Sequence[str], sizes: Iterable[tuple[str, int]]) -> tuple[int, ...]:
    """Return the sum of the sizes below each of ``prefixes``."""
    found = dict(sizes)
    return tuple(sum(size for name, size in found.items() if name.startswith(f"{home}.")) for home in prefixes)


def parameter_bytes(model: "PreTrainedModel", quantise: "Quantise") -> Iterator[tuple[str, int]]:
    """Yield each parameter's name and its bytes, quantisation state included.

    The quantised modules are those that transformers hands to bitsandbytes: linear ones, except the head and tied ones.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = get_keys_to_not_convert(model)
    for name, parameter in model.named_parameters():
        module_name, _, leaf = name.rpartition(".")
        module: Any = model.get_submodule(module_name)
        linear = leaf == "weight" and (type(module) is nn.Linear or isinstance(module, Conv1D))
        if quantise == "none" or not linear or not should_convert_module(module_name, skipped):
            yield name, parameter.nbytes
        elif quantise == "nf4":
            yield name, nf4_bytes(parameter.numel())
        else:
            rows = parameter.shape[1 if isinstance(module, Conv1D) else 0]
            yield name, parameter.numel() + 4 * rows


def nf4_bytes(numbers: int) -> int:
    """Return the bytes of a matrix in NF4 with double quantisation, as bitsandbytes stores it (``QuantState``)."""
    scales = -(-numbers // NF4_BLOCK)
    return -(-numbers // 2) + scales + 4 * -(-scales // NF4_SCALES) + NF4_TABLE_BYTES


def kv_cache_bytes(layer: "nn.Module", text: "PreTrainedConfig", dtype: "Dtype") -> int:
    """Return the bytes of one token's keys and values in a layer; 0 without an attention."""
    import torch
    from torch import nn

    attention, number = find_attention(layer), getattr(torch, dtype).itemsize
    if attention is None:
        return 0
    keys, values = (getattr(attention, name, None) for name in ("k_proj", "v_proj"))
    if isinstance(keys, nn.Linear) and isinstance(values, nn.Linear):
        return (keys.out_features + values.out_features) * number
    heads = getattr(attention, "num_kv_heads", None) or getattr(text, "num_key_value_heads", None)
    return 2 * (heads or text.num_attention_heads) * head_dim(text) * number


def matmul_flops(model: "PreTrainedModel") -> Iterator[tuple[str, int]]:
    """Yield each matrix's name and its FLOPs per token; of a mixture, only the experts that a token is routed to."""
    from torch import nn

    from depthcut.model.decoder import layers
    from depthcut.model.surgery.shared import BorrowedLinear

    text = layers.text_config(model.config)
    experts = getattr(text, "num_local_experts", None)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        if isinstance(module, BorrowedLinear):
            yield f"{module_name}.base", 2 * module.base[0].get_submodule(module.name).get_parameter("weight").numel()
        for leaf, weight in module.named_parameters(recurse=False):
            if weight.ndim == 3 and len(weight) == experts:
                yield f"{module_name}.{leaf}", 2 * weight[0].numel() * text.num_experts_per_tok
            elif weight.ndim > 1:
                yield f"{module_name}.{leaf}", 2 * weight.numel()


def attention_flops(layer: "nn.Module", text: "PreTrainedConfig", context: int) -> int:
    """Return the FLOPs per token of a layer's attention, excluding its matrices; 0 without an attention."""
    from torch import nn

    attention = find_attention(layer)
    if attention is None:
        return 0
    queries = getattr(attention, "q_proj", None)
    width = queries.out_features if isinstance(queries, nn.Linear) else text.num_attention_heads * head_dim(text)
    # If the attention does not say, all layers have the window, or none has.
    owner = attention if hasattr(attention, "sliding_window") else text
    return 4 * width * min(context, getattr(owner, "sliding_window", None) or context)


def find_attention(layer: "nn.Module") -> "nn.Module | None":
    """Return a layer's attention; None if it has none."""
    from depthcut.model.decoder import layers

    with suppress(ValueError):
        return layer.get_submodule(layers.unit_name(layer, "attention"))
    return None


def head_dim(text: "PreTrainedConfig") -> int:
    """Return the width of an attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
