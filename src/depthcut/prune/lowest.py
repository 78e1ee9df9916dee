"""The n layers that score lowest one by one, wherever they are (Shortened LLaMA, arXiv:2402.02834; ShortGPT)."""

from typing import ClassVar

from depthcut.plan import Plan
from depthcut.prune import Prune, Score, Share
from depthcut.strict import strict


@strict
class Lowest(Share, Prune):
    """One shot: the layers are ranked once. With ``keep_first=4 keep_last=2``, Shortened LLaMA's Taylor+ and PPL+."""

    reads_scores: ClassVar[bool] = True

    def __call__(self, score: Score, depth: int) -> Plan:
        """Choose the layers."""
        n = self.layers(depth)
        if n == 0:
            return Plan(depth, ())
        scores = score()
        ranked = sorted(self.free(depth), key=lambda layer: (scores.layer(layer), layer))
        notes = {"score": sum(scores.layer(layer) for layer in ranked[:n]), "order": ranked}
        return Plan(depth, tuple(sorted(ranked[:n])), notes=notes)
