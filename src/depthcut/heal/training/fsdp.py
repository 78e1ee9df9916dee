"""Sharded training of a model's layers over several processes (PyTorch's FSDP2, by Lightning's strategy for it).

Each layer gets a twin whose weights are sharded, one shard per process; the twins replace the layers during training.
Afterwards the layers are back, with the trained weights and without FSDP2. All other weights (embedding, head, norm)
are copied in every process. Checkpoints hold whole tensors, as those of one process do: either resumes from the other.
"""

from collections.abc import Iterable, Sequence
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
from typing_extensions import override

from depthcut.runtime import ranks

SHARDS_ATTRIBUTE = "depthcut_shares"
"""Attribute of a twin with the shards that its empty parameters will hold, by name."""


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
    """Return a tensor gathered from its shards, on the host; every process has to call this."""
    if not isinstance(value, Tensor):
        return value
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


def shard_like(value: Any, like: Tensor) -> Any:
    """Return this process's shard of a whole tensor if ``like`` is sharded and of its shape; otherwise ``value``."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    mesh = like.device_mesh
    return distribute_tensor(value.to(like.device), mesh, like.placements, src_data_rank=None)


def shape_and_stride(like: Tensor) -> dict[str, Any]:
    """Return the shape and stride of the whole tensor, which a shard does not always determine."""
    return {"shape": like.shape, "stride": like.stride()}


def local_shard(parameter: Any) -> Tensor:
    """Return this process's shard as it lies in memory."""
    return parameter.detach().to_local()


def shard_layers(root: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard the weights of ``layers`` across the processes; a layer's weights are gathered while it runs.

    Args:
        root: module called once per pass around all of the layers, which then prefetch their weights.
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
    replicated = {each for each in root.parameters() if not isinstance(each, DTensor)}
    fully_shard(root, mesh=mesh, ignored_params=replicated)


def clip_grad_norm(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Average the gradients of replicated weights, clip all to a norm of ``limit``; return the norm before clipping."""
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
    """Return the sum of the squares of all entries, on the device of ``like``."""
    parts = [each.float().square().sum() for each in tensors]
    return torch.stack(parts).sum() if parts else torch.zeros((), device=like[0].device)
