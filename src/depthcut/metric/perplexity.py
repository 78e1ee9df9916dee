"""Perplexity of the model without a layer (Shortened LLaMA, arXiv:2402.02834: PPL; SLEB, arXiv:2402.09025)."""

from typing import TYPE_CHECKING

from depthcut.metric import RemovalMetric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.metric import Subject
    from depthcut.model.decoder.measurement import Measurement

MAX_LOSS = 700.0  # nats; exp overflows above


@strict
class Perplexity(RemovalMetric):
    """``exp`` of the mean loss over all tokens of the calibration text, without the layer."""

    def reading(self, subject: "Subject", samples: int | None) -> "Measurement":
        """Return the measurement on all tokens of the calibration text."""
        from depthcut.model.decoder import measurement

        batches = list(measurement.SequenceBatch.from_tokens(subject.texts.calibration().first(samples), self.batch))
        return measurement.Measurement("perplexity", measurement.loss_measure, False, batches, self.value)

    def value(self, sums_KN: "Tensor", count_N: "Tensor", weight_N: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the perplexities and, to first order, their standard errors."""
        from depthcut.model.decoder import measurement

        loss_K, stderr_K = measurement.mean_and_stderr(sums_KN, count_N, weight_N)
        perplexity_K = loss_K.clamp(max=MAX_LOSS).exp()
        return perplexity_K, perplexity_K * stderr_K
