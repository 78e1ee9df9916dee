"""Stand-ins for removed sublayers: modules that add nothing to the residual stream."""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from depthcut.cut.plan import Plan, Unit
from depthcut.model.decoder import layers as decoder_layers


class SkippedAttention(nn.Module):
    """Stand-in for an attention. It caches one number per token, because the model counts positions by its KV cache."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        vars(self).update(
            {key: value for key, value in vars(attention).items() if key in decoder_layers.LAYER_INDEX_KEYS}
        )

    def forward(self, hidden_states: Tensor, *_: Any, **given: Any) -> tuple[Tensor, None]:
        """Return zeros, and None for the attention weights."""
        cache = next((value for value in given.values() if isinstance(value, Cache)), None)
        if cache is not None:
            tally = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(
                tally,
                tally[..., :0],
                next(vars(self)[key] for key in decoder_layers.LAYER_INDEX_KEYS if key in vars(self)),
            )
        return torch.zeros_like(hidden_states), None


class SkippedMlp(nn.Module):
    """Stand-in for an MLP."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(hidden_states)


def remove_sublayers(model: nn.Module, plan: Plan) -> None:
    """Remove the sublayers that ``plan`` drops from ``model``, in place. Raises as :func:`layers.unit_name`."""
    for index in plan.drop:
        _replace_sublayer(decoder_layers.layer_list(model)[index], plan.unit)


@contextmanager
def bypass_units(model: nn.Module, drop: Collection[int], unit: Unit) -> Generator[None]:
    """Inside the ``with`` block, remove these units from ``model``. Raises as :func:`layers.unit_name`."""
    if unit == "layer":
        with decoder_layers.bypass_layers(model, drop):
            yield
        return
    layers = [decoder_layers.layer_list(model)[index] for index in drop]
    before = [(layer, _replace_sublayer(layer, unit)) for layer in layers]
    try:
        yield
    finally:
        for layer, (name, module) in before:
            setattr(layer, name, module)


def _replace_sublayer(layer: nn.Module, unit: Unit) -> tuple[str, nn.Module]:
    """Replace ``unit`` of ``layer`` by a stand-in; return its name and the original module."""
    name = decoder_layers.unit_name(layer, unit)
    module = layer.get_submodule(name)
    setattr(layer, name, SkippedAttention(module) if unit == "attention" else SkippedMlp())
    return name, module


@contextmanager
def bypass_sublayer(layer: nn.Module, unit: Unit | None) -> Generator[None]:
    """Inside the ``with`` block, run ``layer`` without its attention or MLP; None changes nothing."""
    if unit is None:
        yield
        return
    name, module = _replace_sublayer(layer, unit)
    try:
        yield
    finally:
        setattr(layer, name, module)
