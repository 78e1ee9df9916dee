"""Loss and perplexity on held-out text; loss over log V compares vocabularies (Gromov et al., appendix A.2)."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from depthcut.eval import FULL_ONLY, Eval, Subnetworks
from depthcut.runtime.strict import method_fields, strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.data.text.tokens import Tokens
    from depthcut.eval import Bench


@strict
class Loss(Eval):
    """Mean negative log-likelihood per token of ``data.validation``, in nats.

    Attributes:
        batch: sequences per forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})
    sample: ClassVar[frozenset[str]] = frozenset({"sequences"})

    def reads(self, bench: "Bench") -> Any:
        """Return the tokenised validation text, by content."""
        return bench.texts.identity("validation")

    @override
    def settings(self, bench: "Bench") -> dict[str, Any]:
        return method_fields(bench.texts.sources["validation"])

    def prepare(self, bench: "Bench") -> None:
        """Do nothing: the run checks its validation text itself."""
        del bench

    def __call__(self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY) -> list[dict[str, float]]:
        """Measure ``validation/loss`` with its standard error, ``loss_over_log_v`` and ``perplexity``."""
        return measure_loss(model, bench.texts.validation(), "validation", self.batch, cuts)


def measure_loss(
    model: "nn.Module", text: "Tokens", name: str, batch: int, cuts: Subnetworks
) -> list[dict[str, float]]:
    """Measure the loss of each of the ``cuts`` of ``model`` on a text, in nats per token.

    Args:
        model: as in :meth:`Eval.__call__`.
        text: each token of a sequence except the first is predicted.
        name: name of the text, the prefix of the names of the numbers.
        batch: sequences per forward pass.
        cuts: the sub-networks.

    Returns:
        For each cut, ``NAME/loss`` with its standard error, ``loss_over_log_v`` and ``perplexity``, and the number of
        ``items`` (sequences) and ``tokens`` measured. A non-finite loss has no key; ``loss_finite`` is then 0.
    """
    import torch

    from depthcut.model.decoder import inputs, measurement, shared_prefix
    from depthcut.runtime.progress import track

    batches = list(measurement.SequenceBatch.from_tokens(text, batch))
    reading = measurement.Measurement(
        f"{name} loss", measurement.loss_measure, False, batches, measurement.mean_and_stderr
    )
    rows: list[Tensor] = []
    with torch.inference_mode():
        for some in track(batches, f"{name} loss", len(batches)):
            given = inputs.model_inputs(model, some.ids_BT, some.mask_BT)
            forward, ends = shared_prefix.run_subnetworks(model, given, cuts)
            rows.append(measurement.sequence_sums(forward, ends, cuts, reading, some.targets_BT))
    sums_KN = torch.cat(rows, dim=1)
    count_N = torch.cat([(some.targets_BT != inputs.NO_TARGET).sum(1) for some in batches])
    return [
        {f"{name}/{key}": number for key, number in loss_summary(sums_N, count_N, vocabulary_size(model)).items()}
        for sums_N in sums_KN
    ]


def loss_summary(sums_N: "Tensor", count_N: "Tensor", vocabulary: int) -> dict[str, float]:
    """Summarise one loss; its standard error is taken over the means of the sequences."""
    loss = (sums_N.sum() / count_N.sum()).item()
    counts = {"items": len(count_N), "tokens": int(count_N.sum())}
    if not math.isfinite(loss):
        return {"loss_finite": 0, **counts}
    means_N = (sums_N / count_N)[count_N > 0]  # a sequence of one token predicts none
    stderr = (means_N.std() / math.sqrt(len(means_N))).item() if len(means_N) > 1 else 0.0
    numbers = {"loss": loss, "loss_stderr": stderr, "loss_over_log_v": loss / math.log(vocabulary)}
    if loss < 700:  # beyond it exp overflows
        numbers["perplexity"] = math.exp(loss)
    return numbers | counts


def vocabulary_size(model: "nn.Module") -> int:
    """Return V, the number of rows of the embedding."""
    from transformers import PreTrainedModel

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    assert isinstance(base, PreTrainedModel)
    return base.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportReturnType, reportAttributeAccessIssue, reportIndexIssue]
