"""Linear maps of the residual stream across a gap: ``y = x + x B + b``, at the output of the layer before the gap.

For a gap at the start of the model, the map applies to the input of the first kept layer instead. The layer keeps the
name of its class, its index and its place in the KV cache; only its ``forward`` changes.

Legend: B batch, T tokens, D width.
"""

from functools import cache
from typing import Any

from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder import layers
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery.filling import Filling, flatten_tensors
from depthcut.model.surgery.inserted import gap_spans

BRIDGE_BEFORE, BRIDGE_BEHIND = "bridge_before", "bridge_behind"


class Bridge(nn.Module):
    """A linear map added to the residual stream: ``x + x B + b``.

    Args:
        parts: B as ``matrix`` (D x D), as ``left`` (D x r) and ``right`` (r x D), or by its diagonal ``scale`` (D); b
            as ``bias`` (D).
    """

    def __init__(self, parts: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in parts.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Return the hidden state after the gap."""
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
        """Run the layer with its input mapped, its output, or both."""
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
    """Return a subclass of a layer's class that applies bridges."""
    return type(kind.__name__, (BridgedLayer, kind), {"__module__": kind.__module__, "plain": kind})


def bridge_position(plan: Plan, start: int) -> tuple[int, str]:
    """Return the position of the bridge over the gap at ``start``: the new index of the kept layer, and its side."""
    return (plan.keep.index(start - 1), BRIDGE_BEHIND) if start else (0, BRIDGE_BEFORE)


def insert_bridges(model: nn.Module, filling: Filling, plan: Plan, load_config: LoadConfig) -> None:
    """Insert a bridge over each gap."""
    for start, parts in filling.by_layer().items():
        number, side = bridge_position(plan, start)
        layer = layers.layer_list(model)[number]
        if not isinstance(layer, BridgedLayer):
            layer.__class__ = bridged_class(type(layer))
        layer.add_module(
            side, Bridge({name: part.to(load_config.device, load_config.dtype) for name, part in parts.items()})
        )


def extract_bridges(model: nn.Module, plan: Plan) -> Filling | None:
    """Return the bridges of ``model``; None if it has none."""
    bridges: dict[int, dict[str, Tensor]] = {}
    for start, _ in gap_spans(plan):
        number, side = bridge_position(plan, start)
        bridge = getattr(layers.layer_list(model)[number], side, None)
        if isinstance(bridge, Bridge):
            bridges[start] = bridge.state_dict()
    return Filling("bridges", flatten_tensors(bridges)) if bridges else None


def remove_bridges(model: nn.Module) -> None:
    """Remove all bridges."""
    for layer in layers.layer_list(model):
        if isinstance(layer, BridgedLayer):
            for side in (BRIDGE_BEFORE, BRIDGE_BEHIND):
                if hasattr(layer, side):
                    delattr(layer, side)
            layer.__class__ = vars(type(layer))["plain"]
