"""The block of n layers with the lowest score (Gromov et al. 2024, arXiv:2403.17887, equation 6)."""

from typing import ClassVar

from depthcut.cut.plan import UNIT_NOUNS, Plan
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.strict import strict


@strict
class Block(SizedPrune):
    """Drops layers l* .. l*+n-1 with l* = arg min over l of the block's score; the first of several wins.

    The plan notes the share of bootstrap draws over the samples that each start wins.
    """

    reads_scores: ClassVar[bool] = True

    def starts(self, shape: ModelSize, n: int) -> range:
        """Return the possible starts of a block of n units."""
        return range(self.keep_first, shape.depth - self.keep_last - n + 1)

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the block."""
        n = self.count(shape)
        if n == 0:
            return Plan(shape.depth, (), self.unit)
        scores = score()
        start = min(self.starts(shape, n), key=lambda start: scores.block(start, n))
        notes = {
            "score": scores.block(start, n),
            "score_stderr": scores.block_stderr(start, n),
            "wins": {str(start): share for start, share in scores.wins(self.starts(shape, n), n).items()},
            "score_is": f"sum of the {UNIT_NOUNS[self.unit]}' scores" if scores.summed else "of the block",
        }
        return Plan(shape.depth, tuple(range(start, start + n)), self.unit, notes=notes)
