"""Pruners: which layers go, given what the layers are worth and how many are to go."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field

from depthcut.plan import Plan
from depthcut.scores import Scores
from depthcut.strict import strict


class Score(Protocol):
    """Runs the metric, at a price, on the model without the layers ``removed``, and numbers what is left from 0."""

    def __call__(self, removed: tuple[int, ...] = ()) -> Scores:
        """The scores."""
        ...


@strict
class Prune(ABC):
    """Decides on a plan.

    Attributes:
        reads_scores: whether the plan depends on the metric at all.
        rescores: whether it asks the metric again about what is left after a removal.
    """

    reads_scores: ClassVar[bool]
    rescores: ClassVar[bool] = False

    @abstractmethod
    def layers(self, depth: int) -> int:
        """How many of ``depth`` layers go.

        Raises:
            ValueError: if too few would stay.
        """

    @abstractmethod
    def __call__(self, score: Score, depth: int) -> Plan:
        """Choose the layers of a model of ``depth`` layers that go."""

    def content(self) -> Any:
        """What it reads beside its knobs, by content, as JSON."""
        return None


@strict
class Share:
    """The budget of a pruner that is told how much to cut.

    Attributes:
        frac: share of the layers to drop, in [0, 1), rounded to the nearest whole layer.
        keep_first: the first layers that must stay.
        keep_last: the last layers that must stay.
    """

    frac: Annotated[float, Field(ge=0, lt=1)]
    keep_first: Annotated[int, Field(ge=0)]
    keep_last: Annotated[int, Field(ge=0)]

    def free(self, depth: int) -> range:
        """The layers that may go."""
        return range(self.keep_first, depth - self.keep_last)

    def layers(self, depth: int) -> int:
        """How many of ``depth`` layers go.

        Raises:
            ValueError: if no layer would stay, or fewer than the ones that must.
        """
        n = math.floor(self.frac * depth + 0.5)
        most = max(0, min(len(self.free(depth)), depth - 1))
        if n > most:
            must = f"the first {self.keep_first} and " if self.keep_first else ""
            must += "the last layer" if self.keep_last == 1 else f"the last {self.keep_last} layers"
            highest = math.floor((most + 0.49) / depth * 100) / 100
            raise ValueError(
                f"plan keeps {depth - n} of {depth} layers; {must} must stay. "
                f"Lower prune.frac (now {self.frac:g}; at most {highest:g} here)"
            )
        return n
