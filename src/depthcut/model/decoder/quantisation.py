"""Quantisation (bitsandbytes or none), dtype and device of weights in memory."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

Quantise = Literal["none", "nf4", "int8"]
Dtype = Literal["bfloat16", "float16", "float32"]


class LoadConfig(NamedTuple):
    """Representation of a model in memory: quantisation of its linear layers, dtype of the rest, device."""

    quantise: Quantise
    dtype: "torch.dtype"
    device: str


def keep_differentiable(model: "nn.Module") -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on a CPU with AVX512-BF16.

    It repacks them at the first forward pass without gradients, and the packed weights have no backward pass: healing
    after an evaluation would then train on wrong gradients, with only a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def bitsandbytes_config(quantise: Quantise, dtype: "torch.dtype") -> "BitsAndBytesConfig | None":
    """Return the bitsandbytes config for the linear layers; None without quantisation."""
    from transformers import BitsAndBytesConfig

    if quantise == "none":
        return None
    # On a CPU it warns once that an optional kernel is missing, and with int8 about a cast at every product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def insert_quantised_linears(layer: "nn.Module", quantise: Quantise, dtype: "torch.dtype") -> None:
    """Replace the linear modules of a decoder layer on the meta device by those of bitsandbytes."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(layer, quantization_config=bitsandbytes_config(quantise, dtype))
    keep_differentiable(layer)


def fill_layer(
    layer: "nn.Module",
    parameter: "Callable[[str, nn.Parameter], nn.Parameter]",
    buffers: "Mapping[str, torch.Tensor]",
) -> "nn.Module":
    """Fill a layer on the meta device, in place, and return it in eval mode.

    Args:
        layer: its parameters and buffers on the meta device are replaced, others stay.
        parameter: returns each parameter, given its name and the one on the meta device.
        buffers: buffers by name of a layer of the same model, because no file holds them.

    Raises:
        UserError: if ``buffers`` lacks one, or holds it in another shape.
    """
    for name, bare in list(layer.named_parameters()):
        if bare.is_meta:
            owner, _, leaf = name.rpartition(".")
            layer.get_submodule(owner).register_parameter(leaf, parameter(name, bare))
    for name, bare in list(layer.named_buffers()):
        if bare.is_meta:
            found = buffers.get(name)
            if found is None or found.is_meta or found.shape != bare.shape:
                raise UserError(f"{type(layer).__name__}: its buffer {name} is in no file and differs between layers")
            owner, _, leaf = name.rpartition(".")
            layer.get_submodule(owner).register_buffer(leaf, found, persistent=False)
    return layer.eval()


def materialise_parameter(old: Any, tensor: "torch.Tensor", dtype: "torch.dtype", device: str) -> "nn.Parameter":
    """Return ``tensor`` as a replacement for ``old``, a parameter on the meta device; quantised if ``old`` is."""
    from torch import nn

    if type(old) is nn.Parameter:
        return nn.Parameter(tensor.to(device, dtype), requires_grad=False)
    settings = {key: value for key, value in vars(old).items() if key != "SCB"}
    return type(old)(tensor.to(dtype), requires_grad=False, **settings).to(device)
