"""Replacements: what stands in the gap that the cut leaves."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from depthcut.plan import Plan
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.lab import Lab


@strict
class Replace(ABC):
    """Puts something where the dropped layers were."""

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, lab: "Lab") -> "nn.Module":
        """Return the pruned ``model`` with its gap filled; ``lab.checkpoint`` still holds the dropped layers."""
