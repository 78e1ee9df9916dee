"""The block of n layers that scores lowest (Gromov et al. 2024, arXiv:2403.17887, equation 6)."""

from typing import ClassVar

from depthcut.plan import Plan
from depthcut.prune import Prune, Score, Share
from depthcut.strict import strict


@strict
class Block(Share, Prune):
    """Drops layers l* .. l*+n-1 with l* = arg min over l of the block's score; the first of equals."""

    reads_scores: ClassVar[bool] = True

    def __call__(self, score: Score, depth: int) -> Plan:
        """Choose the block."""
        n = self.layers(depth)
        if n == 0:
            return Plan(depth, ())
        scores = score()
        starts = range(self.keep_first, depth - self.keep_last - n + 1)
        start = min(starts, key=lambda start: scores.block(start, n))
        notes = {
            "score": scores.block(start, n),
            "score_stderr": scores.block_stderr(start, n),
            "score_is": "sum of the layers' scores" if scores.summed else "of the block",
        }
        return Plan(depth, tuple(range(start, start + n)), notes=notes)
