"""Devices and their memory."""

import logging
import os
from pathlib import Path

from depthcut.runtime import ranks
from depthcut.runtime.errors import UserError

GIB = 2**30
log = logging.getLogger("depthcut")


def choose_device(asked: str) -> str:
    """Return ``cpu``, or ``cuda`` if ``asked`` is ``auto`` or ``cuda`` and a GPU is available.

    Raises:
        UserError: if ``asked`` is ``cuda`` and no GPU is available.
    """
    import torch

    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UserError("device=cuda: torch finds no GPU. Use device=cpu, or a machine with a GPU and torch with CUDA")
    return ranks.select_gpu() if available and asked != "cpu" else "cpu"


def fits_in_free_memory(weights: int, device: str) -> bool:
    """Return whether a model of so many bytes fits in free memory with a tenth to spare; log it if not."""
    there = free_memory(device)
    if weights > 0.9 * there:
        log.info("the model needs %.1f GiB, %.1f GiB free: scoring layer by layer", weights / GIB, there / GIB)
    return weights <= 0.9 * there


def fits_in_total_memory(weights: int, device: str) -> bool:
    """Return whether a model of so many bytes fits on ``device``; equal machines give the same result."""
    return weights <= 0.9 * total_memory(device)


def check_shards_fit(weights: int, device: str) -> None:
    """Check that a model of so many bytes fits if it is sharded across processes, and log the sharding.

    Raises:
        UserError: if the shards do not fit.
    """
    there, processes = total_memory(device), ranks.world_size()
    if weights > 0.9 * there * processes:
        room = f"{processes} processes have {there / GIB:.1f} GiB each"
        raise UserError(f"the model needs {weights / GIB:.1f} GiB, {room}: use more processes or a larger cut")
    log.info(
        "the model needs %.1f GiB, a GPU has %.1f GiB: each of %d processes holds a shard of each layer",
        weights / GIB,
        there / GIB,
        processes,
    )


def total_memory(device: str) -> int:
    """Return the bytes of a GPU, or of the host divided by the processes on it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * ranks.node_count() // ranks.world_size()


def free_memory(device: str) -> int:
    """Return the free bytes on ``device`` (``cpu`` or ``cuda``); on the host, bytes available without swapping."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
