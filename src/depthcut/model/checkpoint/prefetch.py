"""Prefetching of tensors from disk to the device in background threads.

Reading, copying and computing overlap. The bytes that have arrived and are not used yet are bounded.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from depthcut.model.checkpoint.tensors import LazyTensor

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


class Prefetcher:
    """Tensors that are prefetched in order, at most ``limit_bytes`` at a time, including the one in use.

    Args:
        readers: the threads that read them.
        tensors: by name.
        order: names in the order in which requests are expected; these are prefetched. A tensor that is requested out
            of order is read on request.
        limit_bytes: in bytes; one tensor is always allowed.
    """

    def __init__(
        self, readers: ReaderPool, tensors: Mapping[str, LazyTensor], order: Iterable[str], limit_bytes: int
    ) -> None:
        self.tensors = {name: PrefetchedTensor(self, name, one) for name, one in tensors.items()}
        self.unexpected_requests = 0
        self._readers = readers
        self._tensors = tensors
        self._limit_bytes = limit_bytes
        self._next = dict.fromkeys(order)
        self._pending: dict[str, PendingTensor] = {}
        self._reserved_bytes = 0
        self._in_use_bytes = 0
        self.claimed: Callable[[], object] = lambda: None
        self._lock = threading.Lock()  # several threads fill a model that is not quantised

    def get(self, name: str) -> Tensor:
        """Return a tensor; the one before it has been used by now, and its memory counts as free."""
        with self._lock:
            self._reserved_bytes -= self._in_use_bytes
            if name not in self._pending:
                self.unexpected_requests += next(iter(self._next), None) != name
                self._prefetch(name)
            pending = self._pending.pop(name)
            self._in_use_bytes = self._tensors[name].nbytes
            while (
                self._next
                and self._reserved_bytes + self._tensors[first := next(iter(self._next))].nbytes <= self._limit_bytes
            ):
                self._prefetch(first)
            self.claimed()
        return pending.tensor()

    def _prefetch(self, name: str) -> None:
        self._next.pop(name, None)
        self._reserved_bytes += self._tensors[name].nbytes
        self._pending[name] = self._readers.submit(self._tensors[name])


class PrefetchedTensor:
    """Stand-in for a tensor in a state dict for transformers; indexing returns the tensor."""

    def __init__(self, prefetcher: Prefetcher, name: str, lazy: LazyTensor) -> None:
        self._prefetcher = prefetcher
        self._name = name
        self._lazy = lazy

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return self._lazy.get_shape()

    def get_dtype(self) -> str:
        """Return the type as named in the file, for example ``BF16``."""
        return self._lazy.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """Return the tensor, on the device.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        return self._prefetcher.get(self._name)[index]


def resolve_device(device: str) -> torch.device:
    """Return the current GPU for ``cuda``, which would mean the first GPU in a new thread."""
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


@contextmanager
def prefetched_tensors(
    tensors: Mapping[str, LazyTensor],
    order: Iterable[str],
    limit_bytes: int,
    device: str,
    claimed: Callable[[], object] = lambda: None,
) -> Generator[Mapping[str, PrefetchedTensor]]:
    """Yield tensors that arrive on ``device`` when they are indexed, as :class:`Prefetcher` describes.

    ``claimed`` is called for each.
    """
    readers = ReaderPool(device)
    try:
        prefetcher = Prefetcher(readers, tensors, order, limit_bytes)
        prefetcher.claimed = claimed
        yield prefetcher.tensors
    finally:
        readers.close()
