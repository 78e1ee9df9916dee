"""Layers that lost one half: what stands where an attention or an MLP was, and adds nothing to the residual stream."""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from depthcut.cut.plan import Plan, Unit
from depthcut.model.decoder import layers as decoder_layers


class SkippedAttention(nn.Module):
    """In place of an attention. Its KV cache holds one number a token, for the model's positions count the cache."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        vars(self).update(
            {key: value for key, value in vars(attention).items() if key in decoder_layers.LAYER_INDEX_KEYS}
        )

    def forward(self, hidden_states: Tensor, *_: Any, **given: Any) -> tuple[Tensor, None]:
        """Add nothing; the second value stands for the attention's weights."""
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
    """In place of an MLP."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Add nothing."""
        return torch.zeros_like(hidden_states)


def remove_sublayers(model: nn.Module, plan: Plan) -> None:
    """Take out of ``model``, for good, the halves that ``plan`` drops. Raises as :func:`depth.unit_name`."""
    for index in plan.drop:
        _replace_sublayer(decoder_layers.layer_list(model)[index], plan.unit)


@contextmanager
def bypass_units(model: nn.Module, drop: Collection[int], unit: Unit) -> Generator[None]:
    """Inside the ``with``, ``model`` is without these units; then as before. Raises as :func:`depth.unit_name`."""
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
    """Put the stand-in where ``layer`` has ``unit``; give the unit's name and the unit."""
    name = decoder_layers.unit_name(layer, unit)
    module = layer.get_submodule(name)
    setattr(layer, name, SkippedAttention(module) if unit == "attention" else SkippedMlp())
    return name, module


@contextmanager
def bypass_sublayer(layer: nn.Module, unit: Unit | None) -> Generator[None]:
    """Inside the ``with``, ``layer`` runs without its attention or MLP; with None it is left alone."""
    if unit is None:
        yield
        return
    name, module = _replace_sublayer(layer, unit)
    try:
        yield
    finally:
        setattr(layer, name, module)
