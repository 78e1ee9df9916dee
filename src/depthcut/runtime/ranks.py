"""Several processes on one point, started by ``srun`` or ``torchrun``: which this one is, and how many there are."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment


def launcher() -> str | None:
    """Who started this process beside others; None where it is the only one."""
    if "SLURM_STEP_ID" in os.environ:  # a shell within an allocation has SLURM's variables too, but no step
        return "slurm" if env_int("SLURM_NTASKS", 1) > 1 else None
    return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ and env_int("WORLD_SIZE", 1) > 1 else None


def global_rank() -> int:
    """The number of this process among those of its point."""
    return env_int({"slurm": "SLURM_PROCID", "torchrun": "RANK", None: ""}[launcher()], 0)


def world_size() -> int:
    """How many processes share the point."""
    return env_int({"slurm": "SLURM_NTASKS", "torchrun": "WORLD_SIZE", None: ""}[launcher()], 1)


def node_count() -> int:
    """On how many machines they are."""
    return env_int({"slurm": "SLURM_NNODES", "torchrun": "GROUP_WORLD_SIZE", None: ""}[launcher()], 1)


def local_rank() -> int:
    """The number of this process among those of its machine: that of its GPU."""
    return env_int({"slurm": "SLURM_LOCALID", "torchrun": "LOCAL_RANK", None: ""}[launcher()], 0)


def select_gpu() -> str:
    """This process's GPU, which becomes the one that torch means by ``cuda``."""
    import torch

    torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return "cuda"


def cluster_environment() -> "ClusterEnvironment":
    """The same for Lightning, which must not guess: within a job of SLURM a point may well be alone."""
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
    """An environment variable that holds a number."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
