"""Products with frozen weights and their adapters, without the copies and casts of the general code.

peft keeps a float32 copy of each input for its float32 adapters, and clones the output of a 4-bit layer; bitsandbytes'
4-bit product cannot be compiled with the code around it. Here adapters are cast to the input's dtype (a few MB), and
the 4-bit product is one operator, which keeps only the packed weight for the backward pass.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora.bnb import Linear4bit as Adapted4bit
from peft.tuners.lora.layer import Linear as Adapted
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

SCALE_BLOCK = 256  # of the second quantisation, applied to the scales


@torch.library.custom_op("depthcut::multiply_4bit", mutates_args=())
def multiply_4bit(x: Tensor, packed: Tensor, scales: Sequence[Tensor], shape: Sequence[int], turn: bool) -> Tensor:
    """Return the product of ``x`` with the transpose of an NF4 weight, or with the weight itself if ``turn``.

    Args:
        x: ... x in; ... x out if ``turn``.
        packed: two weights per byte.
        scales: the 8-bit scales of blocks of 64 weights, and their own quantisation: code, scales, mean.
        shape: out, in.
        turn: for the backward pass.
    """
    fine, code, coarse, mean = scales
    scale = torch.ops.bitsandbytes.dequantize_blockwise(fine, coarse, code, SCALE_BLOCK, torch.float32) + mean
    weight = torch.ops.bitsandbytes.dequantize_4bit(packed, scale, 64, "nf4", shape, x.dtype)
    return x @ weight if turn else F.linear(x, weight)


@multiply_4bit.register_fake
def _(x: Tensor, packed: Tensor, scales: Sequence[Tensor], shape: Sequence[int], turn: bool) -> Tensor:
    del packed, scales
    return x.new_empty(*x.shape[:-1], shape[1] if turn else shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, packed, scales, ctx.shape, ctx.turn = inputs
    ctx.save_for_backward(packed, *scales)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    packed, *scales = ctx.saved_tensors
    return multiply_4bit(grad, packed, scales, ctx.shape, not ctx.turn), None, [None] * 4, None, None


multiply_4bit.register_autograd(_backward, setup_context=_setup_context)


class Lean4bit(Linear4bit):
    """A 4-bit layer that multiplies by :func:`multiply_4bit`. Its inputs are attributes, as the compiler requires."""

    packed: Tensor
    scales: list[Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the weight, plus the bias."""
        y = multiply_4bit(x, self.packed, self.scales, [self.out_features, self.in_features], False)
        bias: Any = self.bias
        return y if bias is None else y + bias.to(x.dtype)


def lora_forward(self: Any, x: Tensor) -> Tensor:
    """Return W x + (alpha / r) B A x, all in the dtype of ``x``."""
    (name,) = self.active_adapters
    a = self.lora_A[name].weight.to(x.dtype)
    b = (self.lora_B[name].weight * self.scaling[name]).to(x.dtype)
    return self.base_layer(x) + F.linear(F.linear(self.lora_dropout[name](x), a), b)


class LeanAdapted(Adapted):
    """LoRA on a linear layer, by :func:`lora_forward`."""

    forward = lora_forward


class LeanAdapted4bit(Adapted4bit):
    """LoRA on a 4-bit layer, by :func:`lora_forward`."""

    forward = lora_forward


@contextmanager
def lean_layers(model: nn.Module) -> Generator[None]:
    """Make plain LoRA layers and 4-bit layers of ``model`` use the lean products inside the ``with``."""
    kinds: dict[Any, Any] = {Linear4bit: Lean4bit, Adapted: LeanAdapted, Adapted4bit: LeanAdapted4bit}
    before = {module: type(module) for module in model.modules() if is_plain_lora(module) or is_nested_nf4(module)}
    for module, kind in before.items():
        if kind is Linear4bit:
            weight: Any = module.weight
            state = weight.quant_state
            vars(module)["packed"] = weight.data
            vars(module)["scales"] = [state.absmax, state.state2.code, state.state2.absmax, state.offset]
        module.__class__ = kinds[kind]
    try:
        yield
    finally:
        for module, kind in before.items():
            module.__class__ = kind
            vars(module).pop("packed", None)
            vars(module).pop("scales", None)


def is_nested_nf4(module: nn.Module) -> bool:
    """Return whether ``module`` is an NF4 layer with quantised scales, as this package makes them."""
    if type(module) is not Linear4bit:
        return False
    weight: Any = module.weight
    state = weight.quant_state
    usual = state and state.nested and (state.quant_type, state.blocksize) == ("nf4", 64)
    return bool(usual) and state.state2.blocksize == SCALE_BLOCK and not getattr(state, "packing_format_for_cpu", False)


def is_plain_lora(module: nn.Module) -> bool:
    """Return whether ``module`` is a plain LoRA layer on a linear layer, with one adapter, which is active."""
    if type(module) not in (Adapted, Adapted4bit):
        return False
    assert isinstance(module, LoraLayer)
    names = module.active_adapters
    on = len(names) == 1 and names[0] in module.lora_A and not module.merged and not module.disable_adapters
    return on and names[0] not in module.lora_variant and not module.lora_bias.get(names[0], False)
