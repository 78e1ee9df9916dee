"""Transitions of curves: points, intervals, results."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Reason = Literal["", "few", "unknown", "dense", "flat", "unfinished"]

REASONS: dict[Reason, str] = {
    "": "",
    "few": "fewer than 4 cut sizes were measured",
    "unknown": "the chance level of this task is unknown",
    "dense": "the dense model is no better than chance",
    "flat": "no transition seen: no fall beyond noise",
    "unfinished": "no transition seen: not significantly below half at the largest cut",
}


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Transition:
    """Transition of a curve.

    Attributes:
        why: empty if a transition was seen; otherwise the reason, a key of REASONS, and all numbers are None.
        midpoint: half of the lead over chance is lost.
        onset: a tenth is lost.
        width: from the onset to nine tenths lost. Its lower end is limited by the spacing of the fractions.
        rough: ratio of the scatter of the points around the fit to their own errors; at least 1.
    """

    why: Reason
    midpoint: Interval | None = None
    onset: Interval | None = None
    width: Interval | None = None
    rough: float = 1.0

    @property
    def seen(self) -> bool:
        """True if a transition was seen."""
        return not self.why


@dataclass(frozen=True)
class CurveData:
    """Data of a fit: P cuts and the dense model.

    Attributes:
        fraction: fractions of layers dropped, each above 0, P.
        value: accuracy, or another quantity that falls to ``chance``, P.
        stderr: standard errors, P.
        dense: the dense model's value.
        dense_stderr: its standard error.
        chance: the floor, below which a model falls by luck only.
    """

    fraction: Array
    value: Array
    stderr: Array
    dense: float
    dense_stderr: float
    chance: float

    @property
    def errors(self) -> Array:
        """Standard errors of all P + 1 data, the dense model's last; each is at least half of the median.

        An accuracy of 0 or 1 has an estimated error of 0, which is not its true error.
        """
        given = np.append(self.stderr, self.dense_stderr)
        usual = np.median(given[given > 0]) if (given > 0).any() else 0.01
        return np.maximum(given, usual / 2)

    @property
    def leads(self) -> Array:
        """Values above chance, the dense model's last."""
        return np.append(self.value, self.dense) - self.chance
