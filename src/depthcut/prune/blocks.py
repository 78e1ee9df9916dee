"""At most K disjoint blocks, of n layers in total, with the lowest sum of scores (ReplaceMe, arXiv:2505.02819)."""

from functools import cache
from typing import Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Plan
from depthcut.cut.scores import Scores
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.strict import strict

BlockChoice = tuple[float, tuple[tuple[int, int], ...]]


@strict
class Blocks(SizedPrune):
    """The best cut into at most K blocks, found by dynamic programming: exact, in O(K n^2 L) steps.

    Attributes:
        blocks: K. A kept layer separates two blocks. If fewer blocks score lower, fewer are cut.
    """

    blocks: Annotated[int, Field(gt=0)]
    reads_scores: ClassVar[bool] = True

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the blocks."""
        n = self.count(shape)
        if n == 0:
            return Plan(shape.depth, (), self.unit)
        total, chosen = best_blocks(score(), self.free(shape.depth), n, self.blocks)
        drop = tuple(layer for start, size in chosen for layer in range(start, start + size))
        return Plan(shape.depth, drop, self.unit, notes={"score": total, "blocks": [list(block) for block in chosen]})


def best_blocks(scores: Scores, free: range, n: int, most: int) -> BlockChoice:
    """Return the lowest sum over at most ``most`` blocks in ``free``, ``n`` layers in total, and (start, size)s."""

    @cache
    def from_layer(layer: int, left: int, blocks: int) -> BlockChoice:
        """Return the best way to cut ``left`` more layers at ``layer`` or deeper, in at most ``blocks`` blocks."""
        if left == 0:
            return 0.0, ()
        if blocks == 0 or free.stop - layer < left:
            return float("inf"), ()
        ways = [from_layer(layer + 1, left, blocks)]
        for size in range(1, left + 1):
            rest, others = from_layer(layer + size + 1, left - size, blocks - 1)
            ways.append((scores.block(layer, size) + rest, ((layer, size), *others)))
        return min(ways)

    return from_layer(free.start, n, most)
