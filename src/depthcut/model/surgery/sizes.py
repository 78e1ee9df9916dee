"""Sizes of a model's layers or sublayers, from its config alone: parameters, bytes and FLOPs per token.

FLOPs are those of a forward pass, per token: two for each weight of a matrix that the token passes (including a tied
head, excluding the embedding's look-up), and ``4 x heads x head width x context`` in each attention, for ``Q K^T`` and
the weighted sum of the values; norms, biases and softmax are left out. PaLM (Chowdhery et al., arXiv:2204.02311,
appendix B) counts the same way, without the backward pass, and so does torch's ``FlopCounterMode``: the masked half of
a causal matrix saves nothing. The context is :data:`CONTEXT_TOKENS`, or the sliding window if that is shorter.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from depthcut.cut.plan import Unit
from depthcut.model.surgery.costs import attention_flops, kv_cache_bytes, matmul_flops, parameter_bytes, sum_by_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from depthcut.model.decoder.quantisation import Dtype, Quantise

Quantity = Literal["parameters", "weight_bytes", "cache_bytes"]
"""Sizes for which a cut can have a budget."""
SizeName = Quantity | Literal["flops_per_token"]
CONTEXT_TOKENS = 2048
"""Tokens that an attention reads when its FLOPs are counted."""


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
