"""Tensors of a file in loading order, read ahead of the loader."""

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from depthcut.model.checkpoint.lazy_tensor import LazyTensor
from depthcut.model.checkpoint.prefetch import PendingTensor, ReaderPool


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
