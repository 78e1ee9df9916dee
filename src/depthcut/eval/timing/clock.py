"""Timing of repeated work on a CPU or a GPU, and recovery from running out of memory."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager


def time_run(run: Callable[[], object], device: str) -> float:
    """Return the seconds of one run; on a GPU, between two CUDA events."""
    import torch

    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    events[0].record()
    run()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1000


def sample_mean_and_stderr(values: list[float]) -> tuple[float, float]:
    """Return the mean of at least two values, and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def tokens_per_second(name: str, tokens: int, seconds: list[float]) -> dict[str, float]:
    """Return tokens per second over runs of so many tokens; its standard error follows from that of the time."""
    latency, error = sample_mean_and_stderr(seconds)
    return {name: tokens / latency, f"{name}_stderr": tokens / latency * error / latency}


@contextmanager
def suppress_out_of_memory() -> Generator[None]:
    """Leave the ``with`` without an error if memory runs out in it, and free what it allocated."""
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
    else:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
