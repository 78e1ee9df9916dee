"""A model's layers spread over several processes while they train (PyTorch's FSDP2, by Lightning's strategy for it).

Each layer gets a twin whose weights are shares, one a process; twins stand in for the layers meanwhile. Afterwards the
layers are there again, with what was trained, and nothing of FSDP2 on them. What is beside the layers (embedding, head,
norm) lies in every process. Checkpoints hold whole tensors, as those of one process do: either goes on from the other.
"""

import copy
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.strategies.model_parallel import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedConfig
from typing_extensions import override

from depthcut.model.checkpoint.sharded import ShardedLayers
from depthcut.model.decoder import layers as decoder_layers
from depthcut.runtime import devices, ranks
from depthcut.runtime.errors import UserError

SHARDS_ATTRIBUTE = "depthcut_shares"
"""Where a twin keeps what its bare parameters will be, by their names."""
MEMORY_FRACTION = 0.9
"""Of the free memory, which a model may take that comes back from the host."""


class FsdpStrategy(ModelParallelStrategy):
    """FSDP2 over all processes."""

    def __init__(self) -> None:
        super().__init__(
            data_parallel_size=ranks.world_size(), tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return {name: gather_tensor(tensor) for name, tensor in self.lightning_module.state_dict().items()}

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        return state | {
            "state": {key: {k: gather_tensor(v) for k, v in each.items()} for key, each in state["state"].items()}
        }

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, Path(checkpoint_path), weights_only)

    @override
    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        del strict
        assert self.lightning_module is not None
        own = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, tensor in checkpoint["state_dict"].items():
                own[name].copy_(shard_like(tensor, own[name]))

    @override
    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            moments = {
                key: {name: shard_like(value, parameters[key]) for name, value in each.items()}
                for key, each in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": moments})


def gather_tensor(value: Any) -> Any:
    """A tensor put together out of its shares, on the host; every process has to ask."""
    if not isinstance(value, Tensor):
        return value
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


def shard_like(value: Any, like: Tensor) -> Any:
    """This process's share of a whole tensor of the shape of ``like``, where that is shared out; else ``value``."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    mesh = like.device_mesh
    return distribute_tensor(value.to(like.device), mesh, like.placements, src_data_rank=None)


@contextmanager
def shadowed_layers(model: nn.Module, device: str) -> Generator[None]:
    """Inside the ``with``, twins stand in for the layers of ``model``, which are in shares or lie on the host.

    At the end what was trained goes from them into the layers; a model that was whole goes to ``device``, if it has
    room there.

    Raises:
        UserError: if the layers cannot be shared out.
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
    """Make sure that what is trained is of one layer alone, and of one type in each.

    Raises:
        UserError: if it is not.
    """
    seen: set[int] = set()
    for index, layer in enumerate(layers):
        trained = [each for each in layer.parameters() if each.requires_grad]
        types = sorted({str(each.dtype).removeprefix("torch.") for each in trained})
        if len(types) > 1:
            raise UserError(f"heal.strategy=fsdp: layer {index} trains {' and '.join(types)} weights; take ddp")
        if not seen.isdisjoint(map(id, trained)):
            raise UserError(f"heal.strategy=fsdp: layer {index} trains weights of another layer too; take ddp")
        seen.update(map(id, trained))


def shadow_layer(layer: nn.Module) -> nn.Module:
    """A layer of the same weights in memory, but with parameters of its own: bare ones of what is in shares."""
    seen: dict[int, Any] = {}
    for part in layer.modules():
        seen |= {id(each): each for each in vars(part).values() if isinstance(each, PreTrainedConfig)}
        for each in part.parameters(recurse=False):
            bare = torch.empty(each.shape, dtype=each.dtype, device="meta") if isinstance(each, DTensor) else each.data
            seen[id(each)] = nn.Parameter(bare, requires_grad=each.requires_grad)
    forward = vars(layer).pop("forward", None)  # of a layer in shares; FSDP2 has its own
    new = copy.deepcopy(layer, seen)
    if forward is not None:
        vars(layer)["forward"] = forward
        vars(new)[SHARDS_ATTRIBUTE] = {
            name: each for name, each in layer.named_parameters() if isinstance(each, DTensor)
        }
    return new


def copy_trained(layer: nn.Module, other: nn.Module) -> None:
    """Copy what was trained in the twin ``other`` into ``layer``."""
    own = dict(layer.named_parameters())
    for name, each in other.named_parameters():
        if each.requires_grad and isinstance(own[name], DTensor):
            local_shard(own[name]).copy_(local_shard(each))
        elif each.requires_grad:
            own[name].data.copy_(gather_tensor(each.data))


def shape_and_stride(like: Tensor) -> dict[str, Any]:
    """What a share must be told of its whole, where it alone does not tell."""
    return {"shape": like.shape, "stride": like.stride()}


def cast_parameter(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Change a parameter's type, in place."""
    if isinstance(parameter, DTensor):  # its ``data`` is not all that there is to change
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))
    else:
        parameter.data = parameter.data.to(dtype)


def local_shard(parameter: Any) -> Tensor:
    """This process's share, as it lies in memory."""
    return parameter.detach().to_local()


def shard_layers(root: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Give each process its share of the weights of ``layers``; a layer's are put together while it runs.

    Args:
        root: is called once a pass, around all of the layers, which then fetch their weights ahead of time.
        layers: decoder layers.
        mesh: the processes.
    """
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        own: dict[str, Any] = dict(layer.named_parameters())
        shares = {
            name: DTensor.from_local(
                local_shard(each), mesh, own[name].placements, run_check=False, **shape_and_stride(own[name])
            )
            for name, each in vars(layer).pop(SHARDS_ATTRIBUTE, {}).items()
        }
        layer.load_state_dict(shares, strict=False, assign=True)
    beside = {each for each in root.parameters() if not isinstance(each, DTensor)}
    fully_shard(root, mesh=mesh, ignored_params=beside)


def clip_grad_norm(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Average the gradients of what lies in every process, clip all to a norm of ``limit``; give the norm before."""
    grads = [(each.grad, isinstance(each, DTensor)) for each in parameters if each.grad is not None]
    shares = [cast("DTensor", grad).to_local() for grad, shared in grads if shared]
    copies = [grad for grad, shared in grads if not shared]
    for grad in copies:
        dist.all_reduce(grad.div_(ranks.world_size()))
    square = squared_norm(shares, copies or shares)
    dist.all_reduce(square)
    norm = (square + squared_norm(copies, copies or shares)).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for grad in (*shares, *copies):
        grad.mul_(scale)
    return norm


def squared_norm(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all numbers in there; on the device that ``like`` is on."""
    parts = [each.float().square().sum() for each in tensors]
    return torch.stack(parts).sum() if parts else torch.zeros((), device=like[0].device)
