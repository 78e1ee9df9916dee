"""Several processes on one point (``srun``, ``torchrun``): which this one is, and how many there are."""

import os

RANK = ("SLURM_PROCID", "RANK")
WORLD = ("SLURM_NTASKS", "WORLD_SIZE")
NODES = ("SLURM_JOB_NUM_NODES", "GROUP_WORLD_SIZE")


def rank() -> int:
    """The number of this process among those of the point; 0 where it is the only one."""
    return 0 if world() == 1 else number(RANK, 0)


def world() -> int:
    """How many processes share the point.

    A shell within an allocation has SLURM's variables too; only a step of ``srun`` has a step's number.
    """
    if "SLURM_NTASKS" in os.environ and "SLURM_STEP_ID" not in os.environ:
        return number(WORLD[1:], 1)
    return number(WORLD, 1)


def nodes() -> int:
    """How many machines they are on."""
    return number(NODES, 1) if world() > 1 else 1


def number(names: tuple[str, ...], default: int) -> int:
    """The first of these environment variables that holds a number."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)
