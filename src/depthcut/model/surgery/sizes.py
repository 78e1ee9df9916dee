"""Sizes of a model's layers or sublayers, from its config alone: parameters, bytes and FLOPs per token.

FLOPs are those of a forward pass, per token: two for each weight of a matrix that the token passes (including a tied
head, excluding the embedding's look-up), and ``4 x heads x head width x context`` in each attention, for ``Q K^T`` and
the weighted sum of the values; norms, biases and softmax are left out. PaLM (Chowdhery et al., arXiv:2204.02311,
appendix B) counts the same way, without the backward pass, and so does torch's ``FlopCounterMode``: the masked half of
a causal matrix saves nothing. The context is :data:`CONTEXT_TOKENS`, or the sliding window if that is shorter.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from depthcut.cut.plan import Unit

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from depthcut.model.decoder.quantisation import Dtype, Quantise

Quantity = Literal["parameters", "weight_bytes", "cache_bytes"]
"""Sizes for which a cut can have a budget."""
SizeName = Quantity | Literal["flops_per_token"]
CONTEXT_TOKENS = 2048
"""Tokens that an attention reads when its FLOPs are counted."""

# bitsandbytes' NF4 with double quantisation: weights per scale of one byte, and such scales per float32 scale.
NF4_BLOCK, NF4_SCALES = 64, 256
# Per matrix: two tables, of 16 and 256 float32, and the mean that was subtracted from the scales.
NF4_TABLE_BYTES = 4 * (16 + 256 + 1)


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model of ``depth`` layers. A cut by number of layers needs only ``ModelSize(depth)``.

    Attributes:
        depth: L.
        parameters: of each layer's unit: the whole layer, its attention or its MLP.
        weight_bytes: of each unit, with the run's quantisation.
        cache_bytes: of each unit, keys and values of one token. A layer with a sliding window stores as much per token,
            for fewer tokens.
        flops_per_token: of each unit, in a forward pass.
        total: each of the four for the whole model, including everything outside the layers; tied weights count once.
    """

    depth: int
    parameters: tuple[int, ...] = ()
    weight_bytes: tuple[int, ...] = ()
    cache_bytes: tuple[int, ...] = ()
    flops_per_token: tuple[int, ...] = ()
    total: dict[SizeName, int] = field(default_factory=dict[SizeName, int])

    @classmethod
    def from_config(
        cls, config: "PreTrainedConfig", unit: Unit, quantise: "Quantise", dtype: "Dtype", context: int = CONTEXT_TOKENS
    ) -> "ModelSize":
        """Compute the sizes of the model of ``config``; no weight is read.

        Args:
            config: of the model.
            unit: counted for each layer: all of it, its attention, or its MLP.
            quantise: as in :meth:`depthcut.model.checkpoint.checkpoint.Checkpoint.load`.
            dtype: of unquantised weights and of the KV cache.
            context: tokens that an attention reads.

        Raises:
            UserError: if the model cannot be pruned, or its layers have no such unit.
        """
        from depthcut.model.decoder import layers

        model, text = typed_meta_model(config, dtype), layers.text_config(config)
        stem, stack = layers.layer_prefix(model), layers.layer_list(model)
        prefixes = [
            ".".join(filter(None, (stem, str(i), layers.unit_name(part, unit)))) for i, part in enumerate(stack)
        ]
        cache = [kv_cache_bytes(layer, text, dtype) for layer in stack]
        attention = [attention_flops(layer, text, context) for layer in stack]
        if unit == "mlp":
            cache, attention = [0] * len(stack), [0] * len(stack)
        products = sum_by_prefix(prefixes, matmul_flops(model))
        return cls(
            depth=len(stack),
            parameters=sum_by_prefix(prefixes, ((name, weight.numel()) for name, weight in model.named_parameters())),
            weight_bytes=sum_by_prefix(prefixes, parameter_bytes(model, quantise)),
            cache_bytes=tuple(cache),
            flops_per_token=tuple(map(sum, zip(products, attention, strict=True))),
            total=model_sizes(model, quantise, dtype, context),
        )

    def totals_without(self, drop: Collection[int]) -> dict[SizeName, int]:
        """Return each of the four totals for the model without these units."""
        return {key: whole - sum(self.per_unit(key)[at] for at in drop) for key, whole in self.total.items()}

    def per_unit(self, size: SizeName) -> tuple[int, ...]:
        """Return one of the four sizes for each unit."""
        return getattr(self, size)


def model_sizes(
    model: "PreTrainedModel", quantise: "Quantise", dtype: "Dtype", context: int = CONTEXT_TOKENS
) -> dict[SizeName, int]:
    """Return the four sizes of a whole model, including any replacements.

    Args:
        model: not quantised, each parameter of the type that it has in the run; may be on the meta device.
        quantise: as in :meth:`ModelSize.from_config`.
        dtype: of the KV cache.
        context: tokens that an attention reads.
    """
    from depthcut.model.decoder import layers

    text, stack = layers.text_config(model.config), layers.layer_list(model)
    attention = sum(attention_flops(layer, text, context) for layer in stack)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "weight_bytes": sum(size for _, size in parameter_bytes(model, quantise)),
        "cache_bytes": sum(kv_cache_bytes(layer, text, dtype) for layer in stack),
        "flops_per_token": attention + sum(flops for _, flops in matmul_flops(model)),
    }


def typed_meta_model(config: "PreTrainedConfig", dtype: "Dtype") -> "PreTrainedModel":
    """Build the model of ``config`` with this dtype, on the meta device."""
    import torch

    from depthcut.model.decoder import layers

    return layers.meta_model(config).to(getattr(torch, dtype))  # pyright: ignore[reportArgumentType]


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
