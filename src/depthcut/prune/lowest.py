"""The n layers with the lowest single scores, anywhere in the model (Shortened LLaMA, arXiv:2402.02834; ShortGPT)."""

from typing import ClassVar

from depthcut.cut.plan import Plan
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.strict import strict


@strict
class Lowest(SizedPrune):
    """Ranks the layers once. With ``keep_first=4 keep_last=2`` this is Shortened LLaMA's Taylor+ and PPL+."""

    reads_scores: ClassVar[bool] = True

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Choose the layers."""
        n = self.count(shape)
        if n == 0:
            return Plan(shape.depth, (), self.unit)
        scores = score()
        ranked = sorted(self.free(shape.depth), key=lambda layer: (scores.layer(layer), layer))
        notes = {"score": sum(scores.layer(layer) for layer in ranked[:n]), "order": ranked}
        return Plan(shape.depth, tuple(sorted(ranked[:n])), self.unit, notes=notes)
