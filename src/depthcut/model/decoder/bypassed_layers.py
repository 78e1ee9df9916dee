"""The layer list of a model while some of its layers are bypassed."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


class BypassedLayers(nn.ModuleList):
    """A layer list that holds all layers, for ``to``, ``state_dict`` and hooks, but iterates over kept ones only."""

    def __init__(self, stack: nn.ModuleList, keep: Iterable[int]) -> None:
        super().__init__()
        self.visible = [stack[i] for i in keep]
        for name, layer in stack.named_children():
            self.add_module(name, layer)

    def __len__(self) -> int:
        return len(self.visible)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.visible)

    def __getitem__(self, idx: Any) -> Any:
        return self.visible[idx]
