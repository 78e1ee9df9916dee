"""Output projections: the last linear layers of an attention and of an MLP, which write to the residual stream.

Legend: B batch, T tokens, D width.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.model.decoder import layers, layerwise, linear
from depthcut.runtime.errors import UserError


def step_with_mlp_output(forward: layerwise.LayerwiseForward, index: int, h_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden state after a layer, and the output that its MLP adds."""
    outputs: list[Tensor] = []

    def record(output: Tensor) -> Tensor:
        outputs.append(output)
        return output

    with rewrite_output(forward.stack[index], writer_names(forward.stack[index])[1], record):
        after_BTD = forward.step(index, h_BTD)
    return after_BTD, outputs[0].reshape(h_BTD.shape)  # OPT flattens the batch


def writer_names(layer: nn.Module) -> tuple[str, str]:
    """Return the names of the output projections of the attention and of the MLP.

    Raises:
        UserError: if the layer does not have both.
    """
    attention = layers.unit_name(layer, "attention")
    names = list(linear.linear_layers(layer))
    inside = [name for name in names if name.startswith(f"{attention}.")]
    outside = [name for name in names if name not in inside]
    if not inside or not outside:
        raise UserError(
            f"{type(layer).__name__} has no linear layers that write to the residual stream; use another replacement"
        )
    return inside[-1], outside[-1]


def adds_to_stream(forward: layerwise.LayerwiseForward, index: int, name: str) -> bool:
    """Return whether the output of the linear layer ``name`` of layer ``index`` is added to the stream unchanged.

    It is not if a norm follows (Gemma 2). Tested on a hidden state of zeros: both output projections are silenced, then
    one writes a wave, which must come out.
    """
    layer = forward.stack[index]
    wave_D = (
        3 * torch.linspace(0, 9, forward.h_BTD.shape[-1], device=forward.h_BTD.device, dtype=forward.h_BTD.dtype).sin()
    )

    def out(wave: bool) -> Tensor:
        stack = {other: wave_D * (wave and other == name) for other in writer_names(layer)}
        attention, mlp = stack
        with (
            rewrite_output(layer, attention, constant_output(stack[attention])),
            rewrite_output(layer, mlp, constant_output(stack[mlp])),
        ):
            return forward.step(index, torch.zeros_like(forward.h_BTD))

    with torch.no_grad():
        moved_BTD = out(True) - out(False)
    return bool((moved_BTD - wave_D).abs().max() < 0.1)


def constant_output(value_D: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that replaces an output by ``value_D``."""
    return lambda output: value_D.expand_as(output)


@contextmanager
def rewrite_output(layer: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Inside the ``with`` block, apply ``change`` to the output of the module ``name``."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return change(output)

    handle = layer.get_submodule(name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
