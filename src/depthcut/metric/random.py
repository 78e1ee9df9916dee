"""Random scores: the control that every other metric must beat."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.metric import Subject


@strict
class Random(Metric):
    """A uniform score in [0, 1) per layer.

    Attributes:
        seed: seed of the scores.
    """

    seed: Annotated[int, Field(ge=0)]
    reads_text: ClassVar[bool] = False

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score the single layers."""
        assert not removed
        del unit
        import numpy as np

        depth = subject.dense.depth
        return Scores.of_layers(np.random.default_rng(self.seed).random(depth).tolist(), [0.0] * depth)
