"""How much memory is free."""

import logging
import os
from pathlib import Path

GIB = 2**30
log = logging.getLogger("depthcut")


def fits(weights: int, device: str) -> bool:
    """Whether a model of so many bytes has room on ``device``, with a tenth to spare; if not, it is said."""
    there = free(device)
    if weights > 0.9 * there:
        log.info("the model has %.1f GiB, %.1f are free: it is scored layer by layer", weights / GIB, there / GIB)
    return weights <= 0.9 * there


def free(device: str) -> int:
    """Free bytes on ``device``, ``cpu`` or ``cuda``; on the host what can be had without swapping."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
