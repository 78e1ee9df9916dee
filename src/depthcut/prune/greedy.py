"""One layer at a time, rescored after each removal (SLEB, arXiv:2402.09025, algorithm 1)."""

from typing import ClassVar

from depthcut.cut.plan import Plan
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.strict import strict


@strict
class Greedy(SizedPrune):
    """Drops the layer with the lowest score, n times. The scores of each round are cached: a deeper cut reuses them."""

    reads_scores: ClassVar[bool] = True
    rescores: ClassVar[bool] = True

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the layers."""
        removed: list[int] = []
        lowest: list[float] = []
        for _ in range(self.count(shape)):
            scores = score(tuple(sorted(removed)))
            left = [layer for layer in range(shape.depth) if layer not in removed]
            prices = {layer: scores.layer(place) for place, layer in enumerate(left) if layer in self.free(shape.depth)}
            first = min(prices, key=lambda layer: (prices[layer], layer))
            removed.append(first)
            lowest.append(prices[first])
        return Plan(shape.depth, tuple(sorted(removed)), self.unit, notes={"order": removed, "scores": lowest})
