"""The perplexity of the model without a layer (Shortened LLaMA, arXiv:2402.02834: PPL; SLEB, arXiv:2402.09025)."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.metric import Metric
from depthcut.scores import Scores
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.lab import Lab


@strict
class Perplexity(Metric):
    """``exp`` of the mean loss over all tokens of the calibration text, with the layer bypassed.

    Attributes:
        batch: sequences a forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    rescores: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, lab: "Lab", removed: tuple[int, ...] = ()) -> Scores:
        """Score the single layers, all candidates in one pass."""
        from depthcut import removal

        loss_L, stderr_L = removal.without_each(lab, removed, self.batch, self.loss, "perplexity")
        layers = [math.exp(min(loss, 700.0)) for loss in loss_L.tolist()]  # beyond it exp overflows
        stderr = [score * error for score, error in zip(layers, stderr_L.tolist(), strict=True)]
        return Scores.of_layers(layers, stderr, len(lab.calibration()))

    def loss(self, logits_BTV: "Tensor", dense_BTV: "Tensor", targets_BT: "Tensor") -> "Tensor":
        """Each token's negative log-likelihood; 0 where there is no target."""
        from depthcut import forward

        del dense_BTV
        return forward.token_losses(logits_BTV, targets_BT)
