"""Every k-th layer: n evenly spaced layers (Fan et al., LayerDrop, arXiv:1909.11556), as a control."""

from typing import ClassVar

from depthcut.cut.plan import Plan
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.strict import strict


@strict
class Every(SizedPrune):
    """Divides the layers that may go into n equal stretches and drops the middle layer of each."""

    reads_scores: ClassVar[bool] = False

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the layers by their positions alone."""
        del score
        n, free = self.count(shape), self.free(shape.depth)
        return Plan(shape.depth, tuple(free[(2 * i + 1) * len(free) // (2 * n)] for i in range(n)), self.unit)
