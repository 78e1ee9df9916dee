"""Timing a piece of work on a CPU or a GPU, again and again, and what if memory runs out in it."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager


def time_run(run: Callable[[], object], device: str) -> float:
    """Seconds of one run; on a GPU between two of its own events."""
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
    """The mean of two values or more, and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def tokens_per_second(name: str, tokens: int, seconds: list[float]) -> dict[str, float]:
    """Tokens a second over runs of so many tokens, with the standard error that follows from that of the time."""
    latency, error = sample_mean_and_stderr(seconds)
    return {name: tokens / latency, f"{name}_stderr": tokens / latency * error / latency}


@contextmanager
def suppress_out_of_memory() -> Generator[None]:
    """Go on behind the ``with`` if memory runs out in it, with what was taken given back."""
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
