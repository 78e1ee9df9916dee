"""Shards of parameters: each process's rows."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from depthcut.model.checkpoint import process_group
from depthcut.runtime import ranks

if TYPE_CHECKING:
    pass


def shard_layer(layer: nn.Module) -> None:
    """Reduce a whole layer to this process's shard, in place."""
    for module in layer.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            rows = weight.data[slice(*own_rows(len(weight)))].clone()
            module.register_parameter(name, make_sharded_parameter(rows, weight.shape))


def own_rows(rows: int) -> tuple[int, int]:
    """Return this process's half-open range of ``rows`` rows, split as by ``torch.chunk`` and FSDP2."""
    size = -(-rows // ranks.world_size())
    return min(rows, ranks.global_rank() * size), min(rows, (ranks.global_rank() + 1) * size)


def make_sharded_parameter(rows: Tensor, shape: torch.Size) -> nn.Parameter:
    """Return a parameter of this shape of which this process holds ``rows``."""
    stride = torch.empty(shape, device="meta").stride()
    tensor = DTensor.from_local(
        rows, process_group.device_mesh(rows.device.type), [Shard(0)], run_check=False, shape=shape, stride=stride
    )
    return nn.Parameter(tensor, requires_grad=False)


def sharded_parameters(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return the sharded parameters of a layer, each with its module and its name in that module."""
    parameters = [(part, name, each) for part in layer.modules() for name, each in part.named_parameters(recurse=False)]
    return [(part, name, each) for part, name, each in parameters if isinstance(each, DTensor)]


def gather_shards(shard: Any) -> Tensor:
    """Gather a sharded tensor: the first process returns all of it, the others send their shards."""
    rows, shape = shard.to_local().detach(), shard.shape
    size = -(-shape[0] // ranks.world_size())
    padded = rows.contiguous()
    if len(rows) < size:
        padded = rows.new_zeros(size, *shape[1:])
        padded[: len(rows)] = rows
    first = not ranks.global_rank()
    whole = rows.new_empty(size * ranks.world_size() if first else 0, *shape[1:])
    # As bytes, because not every backend supports every type.
    outputs = list(whole.view(-1).view(torch.uint8).chunk(ranks.world_size())) if first else None
    dist.gather(padded.view(-1).view(torch.uint8), outputs)
    return whole[: shape[0]]
