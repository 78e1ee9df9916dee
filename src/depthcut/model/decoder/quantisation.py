"""How weights lie in memory: quantised by bitsandbytes or not, of which type, on which device."""

import logging
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

Quantise = Literal["none", "nf4", "int8"]
Dtype = Literal["bfloat16", "float16", "float32"]


class LoadConfig(NamedTuple):
    """How a model lies in memory: its linear layers' quantisation, the type of the rest, the device."""

    quantise: Quantise
    dtype: "torch.dtype"
    device: str


def keep_differentiable(model: "nn.Module") -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on a CPU with AVX512-BF16.

    It does so at the first forward pass without gradients, and the packed weights have no backward pass: healing after
    an evaluation would then train on wrong gradients, with no more than a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def bitsandbytes_config(quantise: Quantise, dtype: "torch.dtype") -> "BitsAndBytesConfig | None":
    """What bitsandbytes is to do with the linear layers."""
    from transformers import BitsAndBytesConfig

    if quantise == "none":
        return None
    # On a CPU it says once that an optional kernel is absent, and with int8 at every product that it casts.
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
    """Put bitsandbytes' modules in place of the linear ones of a decoder layer on the meta device."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(layer, quantization_config=bitsandbytes_config(quantise, dtype))
    keep_differentiable(layer)


def materialise_parameter(old: Any, tensor: "torch.Tensor", dtype: "torch.dtype", device: str) -> "nn.Parameter":
    """What takes the place of ``old``, a parameter on the meta device: ``tensor``, quantised if ``old`` is to be."""
    from torch import nn

    if type(old) is nn.Parameter:
        return nn.Parameter(tensor.to(device, dtype), requires_grad=False)
    settings = {key: value for key, value in vars(old).items() if key != "SCB"}
    return type(old)(tensor.to(dtype), requires_grad=False, **settings).to(device)
