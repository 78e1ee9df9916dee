"""Metrics: what a block of layers is worth. Lower scores go first."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from depthcut.scores import Scores
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.text import Tokens


@strict
class Metric(ABC):
    """Prices the layers of a dense model on calibration text."""

    @abstractmethod
    def __call__(self, model: "nn.Module", calibration: "Tokens") -> Scores:
        """Score the blocks of ``model`` on ``calibration``; the model is left as it was found."""
