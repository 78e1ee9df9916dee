"""Random layers: the control that every other choice must beat."""

from typing import Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Plan
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.strict import strict


@strict
class Random(SizedPrune):
    """Drops n of the layers that may go; every set is equally likely.

    Attributes:
        seed: seed of the draw.
    """

    seed: Annotated[int, Field(ge=0)]
    reads_scores: ClassVar[bool] = False

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Draw the layers."""
        import numpy as np

        del score
        drawn = np.random.default_rng(self.seed).permutation(self.free(shape.depth))[: self.count(shape)]
        return Plan(shape.depth, tuple(sorted(drawn.tolist())), self.unit)
