"""Tensors on their way from the disk to the device: threads read them, ahead of whoever will ask for them.

Reading, copying and what the device computes go on at the same time. What has arrived and not been used is bounded.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from depthcut.model.checkpoint.tensors import LazyTensor

READER_THREADS = 8  # one reader does not fill a fast disk
READ_BYTES = 32 << 20  # bytes that a reader takes at a time


class PendingTensor:
    """A tensor on its way."""

    def __init__(self, lazy: LazyTensor, bytes_N: Tensor, pieces: list[Future[None]]) -> None:
        self._lazy = lazy
        self._bytes_N = bytes_N
        self._pieces = pieces

    def tensor(self) -> Tensor:
        """The tensor, once all of it is there.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        for piece in self._pieces:
            piece.result()
        return self._lazy.view_bytes(self._bytes_N)


class ReaderPool:
    """Threads that bring tensors onto ``device``.

    To a GPU each goes through pinned memory of its own, used again and again: fresh memory costs as much as the disk.
    """

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self._threads = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="reader")
        self._per_thread = threading.local()

    def submit(self, lazy: LazyTensor) -> PendingTensor:
        """Begin to read a tensor."""
        with torch.inference_mode(False):  # which holds for a thread: the readers could not write into what it makes
            bytes_N = torch.empty(lazy.nbytes, dtype=torch.uint8, device=self.device)
        # The memory may have been freed while work that reads it was still queued: copies into it wait for that.
        free: Any = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        starts = range(0, lazy.nbytes, READ_BYTES)
        read = self._threads.submit
        return PendingTensor(
            lazy, bytes_N, [read(self._read, lazy, at, bytes_N[at : at + READ_BYTES], free) for at in starts]
        )

    def close(self) -> None:
        """Read no more."""
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
    """Tensors of which the next ones are on their way, at most ``room`` bytes with the one that is at work.

    Args:
        readers: who reads them.
        tensors: by their names.
        order: the names in the order in which they are expected to be asked for; these are read ahead. What is asked
            for out of turn is read then.
        room: bytes; one tensor may always be on its way.
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
        self._lock = threading.Lock()  # a model that is not quantised is filled by several threads

    def get(self, name: str) -> Tensor:
        """A tensor; the one before it has been used by now, and its memory is there for those that follow."""
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
    """What transformers takes in place of a tensor: indexing gives it."""

    def __init__(self, prefetcher: Prefetcher, name: str, lazy: LazyTensor) -> None:
        self._prefetcher = prefetcher
        self._name = name
        self._lazy = lazy

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return self._lazy.get_shape()

    def get_dtype(self) -> str:
        """The tensor's type as the file has it, e.g. ``BF16``."""
        return self._lazy.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """The tensor, on the device.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        return self._prefetcher.get(self._name)[index]


def resolve_device(device: str) -> torch.device:
    """The GPU that ``cuda`` means here: in a thread it would mean the first one."""
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


@contextmanager
def prefetched_tensors(
    tensors: Mapping[str, LazyTensor],
    order: Iterable[str],
    limit_bytes: int,
    device: str,
    claimed: Callable[[], object] = lambda: None,
) -> Generator[Mapping[str, PrefetchedTensor]]:
    """Inside the ``with``, tensors that arrive on ``device`` when they are indexed; as :class:`Prefetcher`.

    ``claimed`` is called for each.
    """
    readers = ReaderPool(device)
    try:
        prefetcher = Prefetcher(readers, tensors, order, limit_bytes)
        prefetcher.claimed = claimed
        yield prefetcher.tensors
    finally:
        readers.close()
