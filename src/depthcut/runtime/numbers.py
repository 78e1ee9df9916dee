"""The flat numbers of a record, and a timer that adds to them."""

import resource
import time
from collections.abc import Generator
from contextlib import contextmanager


class Numbers(dict[str, float]):
    """Numbers by name: ``dense/...``, ``pruned/...``, ``healed/...``, ``seconds/...``, ``bytes/...``."""

    @contextmanager
    def timed(self, work: str) -> Generator[None]:
        """Add the seconds spent inside the ``with`` to ``seconds/WORK``."""
        start, key = time.monotonic(), f"seconds/{work}"
        yield
        self[key] = self.get(key, 0.0) + time.monotonic() - start

    def note_peak_memory(self) -> None:
        """Record this process's peak memory so far, on the host and on the GPU, in bytes."""
        import torch

        self["bytes/peak_host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_available():
            earlier = self.get("bytes/peak_device", 0)  # from before eval=speed reset the counter
            self["bytes/peak_device"] = max(earlier, torch.cuda.max_memory_allocated())
