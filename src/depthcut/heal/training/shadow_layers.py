"""Twins of a model's layers, which FSDP2 shards and trains in their place (:mod:`depthcut.heal.training.fsdp`)."""

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from depthcut.heal.training.fsdp import SHARDS_ATTRIBUTE, gather_tensor, local_shard
from depthcut.model.checkpoint.sharded import ShardedLayers
from depthcut.model.decoder import layers as decoder_layers
from depthcut.runtime import devices
from depthcut.runtime.errors import UserError

MEMORY_FRACTION = 0.9
"""Fraction of the free memory that a model may take when it returns from the host."""


@contextmanager
def shadowed_layers(model: nn.Module, device: str) -> Generator[None]:
    """Replace the layers of ``model`` by twins inside the ``with``; the layers are sharded or moved to the host.

    At the end, the trained weights are copied from the twins into the layers. A model that was whole moves to
    ``device`` if it fits.

    Raises:
        UserError: if the layers cannot be sharded.
    """
    stack = decoder_layers.layer_list(model)
    before = list(stack)
    check_shardable(before)
    if not isinstance(stack, ShardedLayers):
        model.to("cpu")
    for index, layer in enumerate(before):
        stack[index] = shadow_layer(layer)
    try:
        yield
        for layer, other in zip(before, stack, strict=True):
            copy_trained(layer, other)
    finally:
        for index, layer in enumerate(before):
            stack[index] = layer
    if not isinstance(stack, ShardedLayers):
        weights = sum(each.numel() * each.element_size() for each in model.parameters())
        room = MEMORY_FRACTION * devices.free_memory("cuda" if device.startswith("cuda") else "cpu")
        model.to(device if weights < room else "cpu")


def check_shardable(layers: Sequence[nn.Module]) -> None:
    """Check that each trained weight belongs to one layer, and that each layer trains one dtype.

    Raises:
        UserError: if not.
    """
    seen: set[int] = set()
    for index, layer in enumerate(layers):
        trained = [each for each in layer.parameters() if each.requires_grad]
        types = sorted({str(each.dtype).removeprefix("torch.") for each in trained})
        if len(types) > 1:
            raise UserError(
                f"heal.strategy=fsdp: layer {index} trains {' and '.join(types)} weights; use heal.strategy=ddp"
            )
        if not seen.isdisjoint(map(id, trained)):
            raise UserError(
                f"heal.strategy=fsdp: layer {index} shares trained weights with another layer; use heal.strategy=ddp"
            )
        seen.update(map(id, trained))


def shadow_layer(layer: nn.Module) -> nn.Module:
    """Return a layer with the same weights in memory but its own parameters, empty ones for sharded weights."""
    seen: dict[int, Any] = {}
    for part in layer.modules():
        seen |= {id(each): each for each in vars(part).values() if isinstance(each, PreTrainedConfig)}
        for each in part.parameters(recurse=False):
            bare = torch.empty(each.shape, dtype=each.dtype, device="meta") if isinstance(each, DTensor) else each.data
            seen[id(each)] = nn.Parameter(bare, requires_grad=each.requires_grad)
    forward = vars(layer).pop("forward", None)  # of a sharded layer; FSDP2 has its own
    new = copy.deepcopy(layer, seen)
    if forward is not None:
        vars(layer)["forward"] = forward
        vars(new)[SHARDS_ATTRIBUTE] = {
            name: each for name, each in layer.named_parameters() if isinstance(each, DTensor)
        }
    return new


def copy_trained(layer: nn.Module, other: nn.Module) -> None:
    """Copy the trained weights of the twin ``other`` into ``layer``."""
    own = dict(layer.named_parameters())
    for name, each in other.named_parameters():
        if each.requires_grad and isinstance(own[name], DTensor):
            local_shard(own[name]).copy_(local_shard(each))
        elif each.requires_grad:
            own[name].data.copy_(gather_tensor(each.data))


def cast_parameter(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Change a parameter's dtype in place."""
    if isinstance(parameter, DTensor):  # changing its ``data`` is not enough
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))
    else:
        parameter.data = parameter.data.to(dtype)
