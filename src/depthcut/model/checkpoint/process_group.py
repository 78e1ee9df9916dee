"""Process groups of a sharded model: one for its weights, one for the requests of the first process."""

import atexit
import os
from datetime import timedelta
from functools import cache
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from depthcut.runtime import ranks

STOP_REQUEST, LOAD_REQUEST = -1, -2  # other requests are indices of layers
REQUEST_TIMEOUT = timedelta(days=7)  # for processes that wait for a request


def broadcast_request(number: int) -> None:
    """Send a request of the first process to the others."""
    dist.broadcast(torch.tensor(number), 0, group=request_group())


def receive_request() -> int:
    """Receive a request of the first process."""
    number = torch.tensor(STOP_REQUEST)
    dist.broadcast(number, 0, group=request_group())
    return int(number)


@cache
def request_group() -> dist.ProcessGroup:
    """Return the group for requests; that for weights may wait only for minutes."""
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=REQUEST_TIMEOUT))


@cache
def device_mesh(kind: str) -> DeviceMesh:
    """Return a one-dimensional mesh of all processes."""
    return init_device_mesh(kind, (ranks.world_size(),))


def ensure_process_group(device: str) -> None:
    """Initialise the default process group, unless it exists; Lightning later uses it."""
    if dist.is_initialized():
        return
    environment = ranks.cluster_environment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, rank=ranks.global_rank(), world_size=ranks.world_size())
    atexit.register(dist.destroy_process_group)
