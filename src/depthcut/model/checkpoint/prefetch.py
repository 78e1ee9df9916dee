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

    def __init__(self, one: LazyTensor, bytes_N: Tensor, pieces: list[Future[None]]) -> None:
        self._one = one
        self._bytes_N = bytes_N
        self._pieces = pieces

    def tensor(self) -> Tensor:
        """The tensor, once all of it is there.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        for piece in self._pieces:
            piece.result()
        return self._one.shaped(self._bytes_N)


class ReaderPool:
    """Threads that bring tensors onto ``device``.

    To a GPU each goes through pinned memory of its own, used again and again: fresh memory costs as much as the disk.
    """

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self._threads = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="reader")
        self._own = threading.local()

    def begin(self, one: LazyTensor) -> PendingTensor:
        """Begin to read a tensor."""
        with torch.inference_mode(False):  # which holds for a thread: the readers could not write into what it makes
            bytes_N = torch.empty(one.nbytes, dtype=torch.uint8, device=self.device)
        # The memory may have been freed while work that reads it was still queued: copies into it wait for that.
        free: Any = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        starts = range(0, one.nbytes, READ_BYTES)
        read = self._threads.submit
        return PendingTensor(
            one, bytes_N, [read(self._read, one, at, bytes_N[at : at + READ_BYTES], free) for at in starts]
        )

    def close(self) -> None:
        """Read no more."""
        self._threads.shutdown(cancel_futures=True)

    def _read(self, one: LazyTensor, start: int, target_N: Tensor, free: Any) -> None:
        if free is None:
            one.fill(start, target_N)
            return
        with torch.cuda.device(self.device):
            if not hasattr(self._own, "stream"):
                self._own.stream = torch.cuda.Stream()
                self._own.buffer = torch.empty(READ_BYTES, dtype=torch.uint8, pin_memory=True)
            piece_N = self._own.buffer[: len(target_N)]
            one.fill(start, piece_N)
            with torch.cuda.stream(self._own.stream):
                self._own.stream.wait_event(free)
                target_N.copy_(piece_N, non_blocking=True)
            self._own.stream.synchronize()


class Prefetcher:
    """Tensors of which the next ones are on their way, at most ``room`` bytes with the one that is at work.

    Args:
        readers: who reads them.
        tensors: by their names.
        order: the names in the order in which they are expected to be asked for; these are read ahead. What is asked
            for out of turn is read then.
        room: bytes; one tensor may always be on its way.
    """

    def __init__(self, readers: ReaderPool, tensors: Mapping[str, LazyTensor], order: Iterable[str], room: int) -> None:
        self.lazy = {name: PrefetchedTensor(self, name, one) for name, one in tensors.items()}
        self.out_of_turn = 0
        self._readers = readers
        self._tensors = tensors
        self._room = room
        self._next = dict.fromkeys(order)
        self._coming: dict[str, PendingTensor] = {}
        self._taken = 0
        self._at_work = 0
        self.claimed: Callable[[], object] = lambda: None
        self._lock = threading.Lock()  # a model that is not quantised is filled by several threads

    def claim(self, name: str) -> Tensor:
        """A tensor; the one before it has been used by now, and its memory is there for those that follow."""
        with self._lock:
            self._taken -= self._at_work
            if name not in self._coming:
                self.out_of_turn += next(iter(self._next), None) != name
                self._begin(name)
            arrival = self._coming.pop(name)
            self._at_work = self._tensors[name].nbytes
            while self._next and self._taken + self._tensors[first := next(iter(self._next))].nbytes <= self._room:
                self._begin(first)
            self.claimed()
        return arrival.tensor()

    def _begin(self, name: str) -> None:
        self._next.pop(name, None)
        self._taken += self._tensors[name].nbytes
        self._coming[name] = self._readers.begin(self._tensors[name])


class PrefetchedTensor:
    """What transformers takes in place of a tensor: indexing gives it."""

    def __init__(self, ahead: Prefetcher, name: str, one: LazyTensor) -> None:
        self._ahead = ahead
        self._name = name
        self._one = one

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return self._one.get_shape()

    def get_dtype(self) -> str:
        """The tensor's type as the file has it, e.g. ``BF16``."""
        return self._one.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """The tensor, on the device.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        return self._ahead.claim(self._name)[index]


def resolve_device(device: str) -> torch.device:
    """The GPU that ``cuda`` means here: in a thread it would mean the first one."""
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


@contextmanager
def prefetched_tensors(
    tensors: Mapping[str, LazyTensor],
    order: Iterable[str],
    room: int,
    device: str,
    claimed: Callable[[], object] = lambda: None,
) -> Generator[Mapping[str, PrefetchedTensor]]:
    """Inside the ``with``, tensors that arrive on ``device`` when they are indexed; as :class:`Prefetcher`.

    ``claimed`` is called for each.
    """
    readers = ReaderPool(device)
    try:
        found = Prefetcher(readers, tensors, order, room)
        found.claimed = claimed
        yield found.lazy
    finally:
        readers.close()
