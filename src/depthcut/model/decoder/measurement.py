"""Measurement of sub-networks: batches, a value per token, an average.

Legend: B batch, T tokens, V vocabulary, K sub-networks, N sequences.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from depthcut.cut.subnetworks import FULL, Subnetwork
from depthcut.model.decoder import inputs, layerwise

if TYPE_CHECKING:
    from depthcut.data.text.tokens import Tokens

TokenMeasure = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""Maps a sub-network's logits (B x T x V, float32), the dense model's and the targets (-100 for none) to one value per
token, B x T."""


@dataclass(frozen=True)
class SequenceBatch:
    """Consecutive sequences from number ``first`` on, with a mask that is 0 at padding, and targets."""

    first: int
    ids_BT: Tensor
    mask_BT: Tensor
    targets_BT: Tensor

    @property
    def span(self) -> tuple[int, int]:
        """Half-open range of the numbers of the sequences."""
        return self.first, self.first + len(self.ids_BT)

    @classmethod
    def from_tokens(cls, text: "Tokens", size: int) -> "Iterator[SequenceBatch]":
        """Yield all of a text, ``size`` sequences at a time; all tokens are targets except the first or the context."""
        for place, (ids_BT, mask_BT) in enumerate(text.batches(size)):
            targets_BT = ids_BT[:, 1:].masked_fill(mask_BT[:, 1:] == 0, inputs.NO_TARGET)
            if text.context is not None:
                context_B = torch.from_numpy(text.context[place * size :][: len(ids_BT)].astype("int64"))
                places_T = torch.arange(1, ids_BT.shape[1])
                targets_BT = targets_BT.masked_fill(places_T < context_B[:, None], inputs.NO_TARGET)
            yield cls(place * size, ids_BT, mask_BT, targets_BT)


@dataclass(frozen=True)
class Measurement:
    """Inputs and computation of a metric.

    Attributes:
        name: of the metric, for messages.
        measure: gives one value per token.
        needs_dense: whether the measure also reads the dense model's logits.
        batches: the sequences.
        aggregate: maps the sums over each sequence's tokens (K x N), the number of these tokens (N) and the weights of
            the sequences (N) to the value of each sub-network and its standard error (K each). Lower is better.
    """

    name: str
    measure: TokenMeasure
    needs_dense: bool
    batches: Sequence[SequenceBatch]
    aggregate: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def sequence_sums(
    forward: layerwise.LayerwiseForward,
    ends: dict[Subnetwork, Tensor],
    requested: Iterable[Subnetwork],
    measurement: Measurement,
    targets_BT: Tensor,
) -> Tensor:
    """Return the measure of each sub-network, summed over the tokens of each sequence: float64 K x B, on the host."""
    targets_BT = targets_BT.to(forward.h_BTD.device)
    dense_BTV = forward.logits(ends[FULL])[:, :-1].float() if measurement.needs_dense else None
    logits = (forward.logits(ends[cut])[:, :-1].float() for cut in requested)
    return torch.stack([measurement.measure(each, dense_BTV, targets_BT).double().sum(1) for each in logits]).cpu()


def loss_measure(logits_BTV: Tensor, dense_BTV: Tensor | None, targets_BT: Tensor) -> Tensor:
    """Return each token's negative log-likelihood, 0 without a target; this is the measure of most metrics."""
    del dense_BTV
    return inputs.token_losses(logits_BTV, targets_BT)


def mean_and_stderr(sums_KN: Tensor, count_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over all tokens, and its standard error over the sequences (that of a ratio of sums), both K."""
    total = (weight_N * count_N).sum()
    mean_K = (weight_N * sums_KN).sum(1) / total
    off_KN = weight_N * (sums_KN - mean_K[:, None] * count_N)
    samples = len(count_N)
    return mean_K, (off_KN.square().sum(1) * samples / max(samples - 1, 1)).sqrt() / total
