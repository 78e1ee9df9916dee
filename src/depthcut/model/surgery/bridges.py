"""Maps of the residual stream across a gap: ``y = x + x B + b``, where the stream leaves the layer before the gap.

Before the first layer of the model no layer is left; there the map stands where the stream enters the one behind. The
layer keeps its class's name, its numbers and its place in the KV cache; only its ``forward`` does more.

Legend: B batch, T tokens, D width.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder import layers
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery.filling import Filling, flatten_tensors
from depthcut.model.surgery.inserted import gap_spans

BRIDGE_BEFORE, BRIDGE_BEHIND = "bridge_before", "bridge_behind"


class Bridge(nn.Module):
    """What is added to the stream: ``x B + b``.

    Args:
        parts: B as ``matrix`` (D x D), as ``left`` (D x r) and ``right`` (r x D), or by its diagonal ``scale`` (D); b
            as ``bias`` (D).
    """

    def __init__(self, parts: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in parts.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, h_BTD: Tensor) -> Tensor:
        """The stream behind the gap."""
        parts, h = dict(self.named_parameters()), h_BTD
        if "matrix" in parts:
            h = h + h_BTD @ parts["matrix"]
        if "left" in parts:
            h = h + (h_BTD @ parts["left"]) @ parts["right"]
        if "scale" in parts:
            h = h + h_BTD * parts["scale"]
        return h + parts["bias"] if "bias" in parts else h


class BridgedLayer(nn.Module):
    """A layer with a bridge; mixed into the layer's own class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer, with the stream mapped before it, behind it, or both."""
        if (before := getattr(self, BRIDGE_BEFORE, None)) is not None:
            if args:
                args = (before(args[0]), *args[1:])
            else:
                kwargs["hidden_states"] = before(kwargs["hidden_states"])
        output = super().forward(*args, **kwargs)  # pyright: ignore
        if (after := getattr(self, BRIDGE_BEHIND, None)) is None:
            return output
        return (after(output[0]), *output[1:]) if isinstance(output, tuple) else after(output)


@cache
def bridged_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A layer's class, with bridges."""
    return type(kind.__name__, (BridgedLayer, kind), {"__module__": kind.__module__, "plain": kind})


def bridge_position(plan: Plan, start: int) -> tuple[int, str]:
    """Where the bridge over the gap that begins at ``start`` stands: the kept layer's new number, and its side."""
    return (plan.keep.index(start - 1), BRIDGE_BEHIND) if start else (0, BRIDGE_BEFORE)


def insert_bridges(model: nn.Module, filling: Filling, plan: Plan, load_config: LoadConfig) -> None:
    """Put a bridge over each gap."""
    for start, parts in filling.by_layer().items():
        number, side = bridge_position(plan, start)
        layer = layers.layer_list(model)[number]
        if not isinstance(layer, BridgedLayer):
            layer.__class__ = bridged_class(type(layer))
        layer.add_module(
            side, Bridge({name: part.to(load_config.device, load_config.dtype) for name, part in parts.items()})
        )


def extract_bridges(model: nn.Module, plan: Plan) -> Filling | None:
    """The bridges of ``model``; None if it has none."""
    bridges: dict[int, dict[str, Tensor]] = {}
    for start, _ in gap_spans(plan):
        number, side = bridge_position(plan, start)
        bridge = getattr(layers.layer_list(model)[number], side, None)
        if isinstance(bridge, Bridge):
            bridges[start] = bridge.state_dict()
    return Filling("bridges", flatten_tensors(bridges)) if bridges else None


def remove_bridges(model: nn.Module) -> None:
    """Take the bridges away."""
    for layer in layers.layer_list(model):
        if isinstance(layer, BridgedLayer):
            for side in (BRIDGE_BEFORE, BRIDGE_BEHIND):
                if hasattr(layer, side):
                    delattr(layer, side)
            layer.__class__ = vars(type(layer))["plain"]


@torch.inference_mode()
def apply_bridge(parts: dict[str, Tensor], x_ND: Tensor) -> Tensor:
    """What a bridge of these parts makes of some states."""
    return Bridge(parts)(x_ND)
