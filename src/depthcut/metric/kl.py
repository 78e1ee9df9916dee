"""Kullback-Leibler divergence from the dense model when a layer is removed (EvoPress, arXiv:2410.14649)."""

from typing import TYPE_CHECKING

from depthcut.metric import RemovalMetric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.metric import Subject
    from depthcut.model.decoder.measurement import Measurement


@strict
class Kl(RemovalMetric):
    """``E_t KL(p_dense || p_without)`` of the next token, in nats, over all tokens of the calibration text."""

    def reading(self, subject: "Subject", samples: int | None) -> "Measurement":
        """Return the measurement on all tokens of the calibration text."""
        from depthcut.model.decoder import measurement

        batches = list(measurement.SequenceBatch.from_tokens(subject.texts.calibration().first(samples), self.batch))
        return measurement.Measurement("kl", self.divergence, True, batches, measurement.mean_and_stderr)

    def divergence(self, logits_BTV: "Tensor", dense_BTV: "Tensor | None", targets_BT: "Tensor") -> "Tensor":
        """Return the divergence at each position; 0 where there is no target."""
        assert dense_BTV is not None
        dense_log_BTV, log_BTV = dense_BTV.log_softmax(-1), logits_BTV.log_softmax(-1)
        return (dense_log_BTV.exp() * (dense_log_BTV - log_BTV)).sum(-1).where(targets_BT != -100, 0)
