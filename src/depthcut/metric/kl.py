"""Kullback-Leibler divergence of the model without a layer from the dense model (EvoPress, arXiv:2410.14649)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.metric import Metric
from depthcut.scores import Scores
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.lab import Lab


@strict
class Kl(Metric):
    """``E_t KL(p_dense || p_without)`` of the next token, in nats, over all tokens of the calibration text.

    Attributes:
        batch: sequences a forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    rescores: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, lab: "Lab", removed: tuple[int, ...] = ()) -> Scores:
        """Score the single layers, all candidates in one pass."""
        from depthcut import removal

        mean_L, stderr_L = removal.without_each(lab, removed, self.batch, self.divergence, "kl")
        return Scores.of_layers(mean_L.tolist(), stderr_L.tolist(), len(lab.calibration()))

    def divergence(self, logits_BTV: "Tensor", dense_BTV: "Tensor", targets_BT: "Tensor") -> "Tensor":
        """Each position's divergence; 0 where there is no target."""
        dense_log_BTV, log_BTV = dense_BTV.log_softmax(-1), logits_BTV.log_softmax(-1)
        return (dense_log_BTV.exp() * (dense_log_BTV - log_BTV)).sum(-1).where(targets_BT != -100, 0)
