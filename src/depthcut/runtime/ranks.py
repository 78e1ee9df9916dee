"""Ranks of the processes that share one point, started by ``srun`` or ``torchrun``."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment


def launcher() -> str | None:
    """Return the launcher of several processes; None for a single process."""
    if "SLURM_STEP_ID" in os.environ:  # a shell within an allocation also has SLURM's variables, but no step
        return "slurm" if env_int("SLURM_NTASKS", 1) > 1 else None
    return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ and env_int("WORLD_SIZE", 1) > 1 else None


def global_rank() -> int:
    """Return the rank of this process among those of its point."""
    return env_int({"slurm": "SLURM_PROCID", "torchrun": "RANK", None: ""}[launcher()], 0)


def world_size() -> int:
    """Return the number of processes that share the point."""
    return env_int({"slurm": "SLURM_NTASKS", "torchrun": "WORLD_SIZE", None: ""}[launcher()], 1)


def node_count() -> int:
    """Return the number of machines that they run on."""
    return env_int({"slurm": "SLURM_NNODES", "torchrun": "GROUP_WORLD_SIZE", None: ""}[launcher()], 1)


def local_rank() -> int:
    """Return the rank of this process on its machine, the index of its GPU."""
    return env_int({"slurm": "SLURM_LOCALID", "torchrun": "LOCAL_RANK", None: ""}[launcher()], 0)


def select_gpu() -> str:
    """Select this process's GPU as torch's ``cuda``, and return ``cuda``."""
    import torch

    torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return "cuda"


def cluster_environment() -> "ClusterEnvironment":
    """Return Lightning's environment; it must not guess, because a SLURM job can run a point in a single process."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    match launcher():
        case "slurm":
            return SLURMEnvironment(auto_requeue=False)
        case "torchrun":
            return TorchElasticEnvironment()
        case _:
            return LightningEnvironment()


def env_int(name: str, default: int) -> int:
    """Return an environment variable as a number."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
