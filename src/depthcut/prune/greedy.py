"""One layer at a time, scored again after each removal (SLEB, arXiv:2402.09025, algorithm 1)."""

from typing import ClassVar

from depthcut.plan import Plan
from depthcut.prune import Prune, Score, Share
from depthcut.strict import strict


@strict
class Greedy(Share, Prune):
    """Drops the layer that scores lowest, n times. Each round's scores are kept: a deeper cut goes on from them."""

    reads_scores: ClassVar[bool] = True
    rescores: ClassVar[bool] = True

    def __call__(self, score: Score, depth: int) -> Plan:
        """Choose the layers."""
        removed: list[int] = []
        lowest: list[float] = []
        for _ in range(self.layers(depth)):
            scores = score(tuple(sorted(removed)))
            left = [layer for layer in range(depth) if layer not in removed]
            prices = {layer: scores.layer(place) for place, layer in enumerate(left) if layer in self.free(depth)}
            first = min(prices, key=lambda layer: (prices[layer], layer))
            removed.append(first)
            lowest.append(prices[first])
        return Plan(depth, tuple(sorted(removed)), notes={"order": removed, "scores": lowest})
