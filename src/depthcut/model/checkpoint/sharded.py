"""A model in shares: of each layer's weights every process holds some rows, and no process ever holds all layers.

The rows are read as such: together the processes read the files once. What is beside the layers lies in every process.
To heal, the shares become those of FSDP2 (:mod:`depthcut.heal.training.fsdp`), where they lie. To be measured the model
runs in the first process alone, whose numbers are thus those of one process: the others hand it their rows of the layer
that is next, as long as it asks for some.
"""

import atexit
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint.prefetch import PendingTensor, ReaderPool
from depthcut.model.checkpoint.streaming import Scaffold
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.runtime import ranks
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint

STOP_REQUEST, LOAD_REQUEST = -1, -2  # what the first process says beside the numbers of layers
REQUEST_TIMEOUT = timedelta(days=7)  # of processes that wait for the first one's word
log = logging.getLogger("depthcut")


class ShardedLayers(nn.ModuleList):
    """Layers of which every process holds a share.

    Attributes:
        leading: whether this process runs the model now, and the others wait to be asked for their shares.
    """

    is_leader = False

    def run_layer(self, number: int, *args: Any, **kwargs: Any) -> Any:
        """What layer ``number`` makes of its input; it is whole meanwhile.

        Raises:
            UserError: if the other processes are not there to help.
        """
        layer = self[number]
        with torch.no_grad(), self.gathered_layer(number):  # a gradient's graph would hold all layers
            return type(layer).forward(layer, *args, **kwargs)

    @contextmanager
    def gathered_layer(self, number: int) -> Generator[nn.Module]:
        """Inside the ``with``, layer ``number`` has all its rows.

        Raises:
            UserError: if the other processes are not there to help.
        """
        if not self.is_leader:
            raise UserError(
                "the model is in shares, which the processes put together to heal it and to evaluate it, and for "
                "nothing else; take heal.strategy=ddp with GPUs that have room for it, or stream=never"
            )
        broadcast_request(number)
        layer = self[number]
        shards = sharded_parameters(layer)
        for module, name, shard in shards:
            module.register_parameter(name, nn.Parameter(gather_shards(shard), requires_grad=False))
        try:
            yield layer
        finally:
            for module, name, shard in shards:
                module.register_parameter(name, shard)


def run_on_first_rank(
    device: str, model: Callable[[], nn.Module], work: Callable[[Callable[[], nn.Module]], object]
) -> None:
    """Have the first process do ``work``, which runs a model in shares; then the others, who find on file what it left.

    Args:
        device: where the model is.
        model: loads it, or gives it where it is loaded.
        work: is given what gives the model.
    """
    ensure_process_group(device)
    if ranks.global_rank():
        serve_shards(model)
        work(model)
        return
    stacks: list[ShardedLayers] = []

    def load_everywhere() -> nn.Module:
        broadcast_request(LOAD_REQUEST)
        loaded = model()
        stacks.append(sharded_layers(loaded))
        stacks[-1].is_leader = True
        return loaded

    work(load_everywhere)
    for stack in stacks:
        stack.is_leader = False
    broadcast_request(STOP_REQUEST)


def serve_shards(model: Callable[[], nn.Module]) -> None:
    """Hand the first process this one's share of the layers that it asks for, until it has done."""
    stack = ShardedLayers()
    while (number := receive_request()) != STOP_REQUEST:
        if number == LOAD_REQUEST:
            stack = sharded_layers(model())
        else:
            for _, _, shard in sharded_parameters(stack[number]):
                gather_shards(shard)


def sharded_layers(model: nn.Module) -> ShardedLayers:
    """The layers of a model in shares."""
    stack = decoder_layers.layer_list(model)
    assert isinstance(stack, ShardedLayers)
    return stack


def load_sharded(checkpoint: "Checkpoint", plan: Plan | None, load_config: LoadConfig) -> PreTrainedModel:
    """Read this process's share of the layers that ``plan`` keeps, and all that is beside them.

    Args:
        checkpoint: the model on the disk.
        plan: None keeps all.
        form: how it lies in memory; not quantised.

    Returns:
        A model in eval mode that runs only in :func:`run_on_first_rank`; its parameter count covers all processes.

    Raises:
        UserError: as :class:`depthcut.model.checkpoint.streaming.Scaffold`.
    """
    ensure_process_group(load_config.device)
    scaffold, readers = Scaffold(checkpoint, plan, load_config), ReaderPool(load_config.device)
    stack = ShardedLayers(scaffold.meta_layers)
    model = scaffold.load(stack)
    for number in scaffold.real_indices:
        shard_layer(stack[number])
    numbers = [number for number in range(len(stack)) if number not in scaffold.real_indices]
    try:
        pending = prefetch_shard(scaffold, readers, numbers[0]) if numbers else {}
        for number, after in zip(track(numbers, "loading: layers", len(numbers)), [*numbers[1:], None], strict=True):
            arrived, pending = pending, {} if after is None else prefetch_shard(scaffold, readers, after)
            stack[number] = scaffold.materialise_layer(number, partial(place_shard, arrived, load_config))
    finally:
        readers.close()
    for number, layer in enumerate(stack):
        vars(layer)["forward"] = partial(stack.run_layer, number)
    return model


def prefetch_shard(scaffold: Scaffold, readers: ReaderPool, number: int) -> dict[str, PendingTensor]:
    """Begin to read this process's rows of a layer."""
    tensors = scaffold.tensors(number)
    return {name: readers.submit(one.rows(*own_rows(one.get_shape()[0]))) for name, one in tensors.items()}


def place_shard(
    arrived: dict[str, PendingTensor], load_config: LoadConfig, name: str, bare: nn.Parameter
) -> nn.Parameter:
    """What takes the place of ``bare``: this process's rows of it, which have arrived under this name."""
    return make_sharded_parameter(arrived.pop(name).tensor().to(load_config.dtype), bare.shape)


def shard_layer(layer: nn.Module) -> None:
    """Leave of a whole layer this process's share."""
    for module in layer.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            rows = weight.data[slice(*own_rows(len(weight)))].clone()
            module.register_parameter(name, make_sharded_parameter(rows, weight.shape))


def own_rows(rows: int) -> tuple[int, int]:
    """The rows of so many that this process holds, half-open: as ``torch.chunk``, and FSDP2, share them out."""
    size = -(-rows // ranks.world_size())
    return min(rows, ranks.global_rank() * size), min(rows, (ranks.global_rank() + 1) * size)


def make_sharded_parameter(rows: Tensor, shape: torch.Size) -> nn.Parameter:
    """A parameter of this shape, of which this process holds ``rows``."""
    stride = torch.empty(shape, device="meta").stride()
    tensor = DTensor.from_local(
        rows, device_mesh(rows.device.type), [Shard(0)], run_check=False, shape=shape, stride=stride
    )
    return nn.Parameter(tensor, requires_grad=False)


def sharded_parameters(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """The parameters of a layer that are in shares: whose they are, their names there, and they."""
    parameters = [(part, name, each) for part in layer.modules() for name, each in part.named_parameters(recurse=False)]
    return [(part, name, each) for part, name, each in parameters if isinstance(each, DTensor)]


def gather_shards(shard: Any) -> Tensor:
    """The whole of which each process holds a share: in the first process; the others send theirs."""
    rows, shape = shard.to_local().detach(), shard.shape
    size = -(-shape[0] // ranks.world_size())
    padded = rows.contiguous()
    if len(rows) < size:
        padded = rows.new_zeros(size, *shape[1:])
        padded[: len(rows)] = rows
    first = not ranks.global_rank()
    whole = rows.new_empty(size * ranks.world_size() if first else 0, *shape[1:])
    # As bytes: not every backend knows every type.
    outputs = list(whole.view(-1).view(torch.uint8).chunk(ranks.world_size())) if first else None
    dist.gather(padded.view(-1).view(torch.uint8), outputs)
    return whole[: shape[0]]


def broadcast_request(number: int) -> None:
    """Tell the other processes what the first one wants of them."""
    dist.broadcast(torch.tensor(number), 0, group=request_group())


def receive_request() -> int:
    """What the first process wants."""
    number = torch.tensor(STOP_REQUEST)
    dist.broadcast(number, 0, group=request_group())
    return int(number)


@cache
def request_group() -> dist.ProcessGroup:
    """Through what the processes talk: beside what moves weights, which may wait for no more than minutes."""
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=REQUEST_TIMEOUT))


@cache
def device_mesh(kind: str) -> DeviceMesh:
    """The processes, in a row."""
    return init_device_mesh(kind, (ranks.world_size(),))


def ensure_process_group(device: str) -> None:
    """Have the processes meet, as Lightning will: it finds that they have."""
    if dist.is_initialized():
        return
    environment = ranks.cluster_environment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, rank=ranks.global_rank(), world_size=ranks.world_size())
    atexit.register(dist.destroy_process_group)
