"""Magnitude of a layer's weights; reads no text (Shortened LLaMA, arXiv:2402.02834, section 3.1: Mag)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric
from depthcut.runtime.progress import track
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.metric import Subject


@strict
class Magnitude(Metric):
    """``sum |W_ij|^p`` over all weights of a layer. Each tensor is read from disk once; no model is loaded.

    Attributes:
        power: p.
    """

    power: Literal[1, 2]
    reads_text: ClassVar[bool] = False

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score the single layers."""
        assert not removed
        depth = subject.dense.depth
        return Scores.of_layers(
            [self.layer(subject, index, unit) for index in track(range(depth), "magnitude", depth)], [0.0] * depth
        )

    def layer(self, subject: "Subject", index: int, unit: Unit) -> float:
        """Return the score of one unit, summed in float64."""
        tensors = subject.dense.tensors(index, unit).values()
        return sum(tensor[...].double().abs().pow(self.power).sum().item() for tensor in tensors)
