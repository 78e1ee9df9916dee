"""Count the bytes that tensors take as they come and go, on any device."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Bytes(TorchDispatchMode):
    """Count the bytes of new tensors inside the ``with``: those alive, and the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.known | {each.untyped_storage()._cdata for each in tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for each in tensors(result):
            if each.untyped_storage()._cdata not in before | self.known:
                self.watch(each.untyped_storage())
        return result

    def watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return all tensors in a nested structure."""
    return [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


def peak(work: Callable[[], Any]) -> int:
    """Return the peak bytes of ``work``."""
    with Bytes() as count:
        work()
    return count.peak
