"""A model sharded across processes: each holds some rows of every layer's weights, and none ever holds all layers.

Each process reads only its own rows, so together the processes read the files once. Weights outside the layers are
replicated. For healing, the shards become those of FSDP2 in place (:mod:`depthcut.heal.training.fsdp`). For
measurements, the model runs in the first process alone, and its numbers equal those of a single process; the others
send their rows of each layer that it requests.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import process_group
from depthcut.model.checkpoint.prefetch import PendingTensor, ReaderPool
from depthcut.model.checkpoint.shards import (
    gather_shards,
    make_sharded_parameter,
    own_rows,
    shard_layer,
    sharded_parameters,
)
from depthcut.model.checkpoint.streaming import Scaffold
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.runtime import ranks
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint


class ShardedLayers(nn.ModuleList):
    """A layer list whose weights are sharded across all processes.

    Attributes:
        is_leader: whether this process runs the model while the others wait for requests.
    """

    is_leader = False

    def run_layer(self, number: int, *args: Any, **kwargs: Any) -> Any:
        """Gather layer ``number`` and return its output.

        Raises:
            UserError: if the other processes are not serving their shards.
        """
        layer = self[number]
        with torch.no_grad(), self.gathered_layer(number):  # an autograd graph would keep all layers alive
            return type(layer).forward(layer, *args, **kwargs)

    @contextmanager
    def gathered_layer(self, number: int) -> Generator[nn.Module]:
        """Gather all rows of layer ``number`` inside the ``with`` block.

        Raises:
            UserError: if the other processes are not serving their shards.
        """
        if not self.is_leader:
            raise UserError(
                "the model is sharded across processes, which only healing and evaluation support: "
                "use heal.strategy=ddp with GPUs on which it fits, or stream=never"
            )
        process_group.broadcast_request(number)
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
    """Run ``work`` on a sharded model in the first process, then in the others, which find its results on disk.

    Args:
        device: device of the model.
        model: loads the model, or returns the loaded one.
        work: takes a function that returns the model.
    """
    process_group.ensure_process_group(device)
    if ranks.global_rank():
        serve_shards(model)
        work(model)
        return
    stacks: list[ShardedLayers] = []

    def load_everywhere() -> nn.Module:
        process_group.broadcast_request(process_group.LOAD_REQUEST)
        loaded = model()
        stacks.append(sharded_layers(loaded))
        stacks[-1].is_leader = True
        return loaded

    work(load_everywhere)
    for stack in stacks:
        stack.is_leader = False
    process_group.broadcast_request(process_group.STOP_REQUEST)


def serve_shards(model: Callable[[], nn.Module]) -> None:
    """Send this process's shards of the layers that the first process requests, until it stops."""
    stack = ShardedLayers()
    while (number := process_group.receive_request()) != process_group.STOP_REQUEST:
        if number == process_group.LOAD_REQUEST:
            stack = sharded_layers(model())
        else:
            for _, _, shard in sharded_parameters(stack[number]):
                gather_shards(shard)


def sharded_layers(model: nn.Module) -> ShardedLayers:
    """Return the layer list of a sharded model."""
    stack = decoder_layers.layer_list(model)
    assert isinstance(stack, ShardedLayers)
    return stack


def load_sharded(checkpoint: "Checkpoint", plan: Plan | None, load_config: LoadConfig) -> PreTrainedModel:
    """Load this process's shard of the layers in ``plan``, and everything outside the layers.

    Args:
        checkpoint: the model on disk.
        plan: None keeps all layers.
        load_config: dtype and device; without quantisation.

    Returns:
        A model in eval mode that runs only in :func:`run_on_first_rank`; its parameter count covers all processes.

    Raises:
        UserError: as :class:`depthcut.model.checkpoint.streaming.Scaffold`.
    """
    process_group.ensure_process_group(load_config.device)
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
    """Start reading this process's rows of a layer."""
    tensors = scaffold.tensors(number)
    return {name: readers.submit(one.rows(*own_rows(one.get_shape()[0]))) for name, one in tensors.items()}


def place_shard(
    arrived: dict[str, PendingTensor], load_config: LoadConfig, name: str, bare: nn.Parameter
) -> nn.Parameter:
    """Return this process's rows of the parameter ``name`` as a replacement for ``bare``."""
    return make_sharded_parameter(arrived.pop(name).tensor().to(load_config.dtype), bare.shape)
