"""Healing: a little training that mends what the cut broke."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from depthcut.plan import Plan
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.lab import Lab


@strict
class Heal(ABC):
    """Mends a pruned model.

    Attributes:
        trains: whether it changes the model at all; then it reads ``data.train`` and the seed.
        bases: the values of ``model.quantise`` that it can train on.
    """

    trains: ClassVar[bool]
    bases: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def sequences(self) -> int:
        """How many sequences of ``data.train`` it reads."""

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, lab: "Lab") -> "nn.Module":
        """Heal ``model``, or attach what an earlier run healed; goes on from its own checkpoint where one is left."""
