"""Prefetching of tensors from disk to the device in background threads.

Reading, copying and computing overlap. The bytes that have arrived and are not used yet are bounded.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from depthcut.model.checkpoint.lazy_tensor import LazyTensor

READER_THREADS = 8  # one thread does not saturate a fast disk
READ_BYTES = 32 << 20  # bytes per read


class PendingTensor:
    """A tensor that is being read."""

    def __init__(self, lazy: LazyTensor, bytes_N: Tensor, pieces: list[Future[None]]) -> None:
        self._lazy = lazy
        self._bytes_N = bytes_N
        self._pieces = pieces

    def tensor(self) -> Tensor:
        """Wait for the tensor and return it.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        for piece in self._pieces:
            piece.result()
        return self._lazy.view_bytes(self._bytes_N)


class ReaderPool:
    """Threads that read tensors to ``device``.

    For a GPU, each thread reuses its own pinned buffer, because fresh pinned memory costs as much time as the disk.
    """

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self._threads = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="reader")
        self._per_thread = threading.local()

    def submit(self, lazy: LazyTensor) -> PendingTensor:
        """Start reading a tensor."""
        with torch.inference_mode(False):  # it holds per thread: readers could not write into inference tensors
            bytes_N = torch.empty(lazy.nbytes, dtype=torch.uint8, device=self.device)
        # Queued work may still read this memory from before it was freed; copies into it wait for that work.
        free: Any = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        starts = range(0, lazy.nbytes, READ_BYTES)
        read = self._threads.submit
        return PendingTensor(
            lazy, bytes_N, [read(self._read, lazy, at, bytes_N[at : at + READ_BYTES], free) for at in starts]
        )

    def close(self) -> None:
        """Stop reading."""
        self._threads.shutdown(cancel_futures=True)

    def _read(self, lazy: LazyTensor, start: int, target_N: Tensor, free: Any) -> None:
        if free is None:
            lazy.read_into(start, target_N)
            return
        with torch.cuda.device(self.device):
            if not hasattr(self._per_thread, "stream"):
                self._per_thread.stream = torch.cuda.Stream()
                self._per_thread.buffer = torch.empty(READ_BYTES, dtype=torch.uint8, pin_memory=True)
            piece_N = self._per_thread.buffer[: len(target_N)]
            lazy.read_into(start, piece_N)
            with torch.cuda.stream(self._per_thread.stream):
                self._per_thread.stream.wait_event(free)
                target_N.copy_(piece_N, non_blocking=True)
            self._per_thread.stream.synchronize()


def resolve_device(device: str) -> torch.device:
    """Return the current GPU for ``cuda``, which would mean the first GPU in a new thread."""
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)
