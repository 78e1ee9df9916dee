"""Healing: a little training that mends what the cut broke."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from depthcut.cut.plan import Plan
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.study.lab import Lab


@strict
class Heal(ABC):
    """Mends a pruned model.

    Attributes:
        trains: whether it changes the model at all; then it reads ``data.train`` and the seed.
        bases: the values of ``model.quantise`` that it can train on.
        leaves: what it trains, which is the name of the folder that has it: ``adapter`` or ``weights``; or nothing.
    """

    trains: ClassVar[bool]
    bases: ClassVar[tuple[str, ...]]
    leaves: ClassVar[str]

    @property
    @abstractmethod
    def sequences(self) -> int:
        """How many sequences of ``data.train`` it reads."""

    def content(self, lab: "Lab") -> Any:
        """What it is beside its knobs, for the point's digest; None: nothing.

        Raises:
            UserError: if something that it needs cannot be had, or does not fit; nothing heavy is loaded yet.
        """
        del lab
        return None

    def prepare(self, lab: "Lab") -> None:
        """Check what it needs of the model, before a weight is loaded.

        Raises:
            UserError: if the model does not have it.
        """
        del lab

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, lab: "Lab") -> "nn.Module":
        """Heal ``model``, or attach what an earlier run healed; goes on from its own checkpoint where one is left."""
