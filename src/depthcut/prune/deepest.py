"""The simple strategy: the deepest n layers, except the last ones (Gromov et al., arXiv:2403.17887, section 4.4)."""

from typing import ClassVar

from depthcut.cut.plan import Plan
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.strict import strict


@strict
class Deepest(SizedPrune):
    """Drops layers L-k-n .. L-k-1, k = ``keep_last`` (1 in the paper); reads neither scores nor weights."""

    reads_scores: ClassVar[bool] = False

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the block by its position alone."""
        del score
        stop = shape.depth - self.keep_last
        return Plan(shape.depth, tuple(range(stop - self.count(shape), stop)), self.unit)
