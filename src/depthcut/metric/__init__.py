"""Metrics: what a layer, or a block of layers, is worth. Lower scores go first."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from depthcut.scores import Scores
from depthcut.strict import strict

if TYPE_CHECKING:
    from depthcut.lab import Lab


@strict
class Metric(ABC):
    """Prices the layers of the dense model.

    Attributes:
        reads_text: whether the calibration text is read at all.
    """

    reads_text: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, lab: "Lab") -> Scores:
        """Score the layers of ``lab.dense()`` on ``lab.calibration()``; the model is left as it was found."""
