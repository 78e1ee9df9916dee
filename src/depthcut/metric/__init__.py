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
        bases: the values of ``model.quantise`` that it can score.
        rescores: whether it runs the model, so that what is left after a removal can be scored again.
    """

    reads_text: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    rescores: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, lab: "Lab", removed: tuple[int, ...] = ()) -> Scores:
        """Score the layers of ``lab.dense()`` on ``lab.calibration()``; the model is left as it was found.

        Args:
            lab: what a run shares.
            removed: layers that are gone already; what is left is numbered from 0. Empty unless ``rescores``.
        """
