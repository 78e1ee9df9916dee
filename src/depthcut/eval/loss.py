"""Loss and perplexity on held-out text, also over log V to compare vocabularies (Gromov et al., appendix A.2)."""

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
    """Mean negative log-likelihood of a token of ``data.validation``, in nats.

    Attributes:
        batch: sequences a forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})
    sample: ClassVar[frozenset[str]] = frozenset({"sequences"})

    def reads(self, bench: "Bench") -> Any:
        """The validation text, tokenised."""
        return bench.texts.identity("validation")

    @override
    def settings(self, bench: "Bench") -> dict[str, Any]:
        return method_fields(bench.texts.sources["validation"])

    def prepare(self, bench: "Bench") -> None:
        """Nothing: the text is checked with the others."""
        del bench

    def __call__(self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY) -> list[dict[str, float]]:
        """Measure ``validation/loss`` with its standard error, ``loss_over_log_v`` and ``perplexity``."""
        return measure_loss(model, bench.texts.validation(), "validation", self.batch, cuts)


def measure_loss(
    model: "nn.Module", text: "Tokens", name: str, batch: int, cuts: Subnetworks
) -> list[dict[str, float]]:
    """The loss of each of the ``cuts`` of ``model`` on a text, in nats a token, and what follows from it.

    Args:
        model: as in :meth:`Eval.__call__`.
        text: each token of a sequence but its first is predicted.
        name: of the text, which the names of the numbers begin with.
        batch: sequences a forward pass.
        cuts: the sub-networks.

    Returns:
        For each cut ``NAME/loss`` with its standard error, ``loss_over_log_v`` and ``perplexity``, and the ``items``
        (sequences) and ``tokens`` that they are of. A loss that is not finite has no key, but ``loss_finite`` is 0.
    """
    import torch

    from depthcut.model.decoder import inputs, shared_prefix
    from depthcut.runtime.progress import track

    batches = list(shared_prefix.SequenceBatch.from_tokens(text, batch))
    reading = shared_prefix.Measurement(
        f"{name} loss", shared_prefix.loss_measure, False, batches, shared_prefix.mean_and_stderr
    )
    rows: list[Tensor] = []
    with torch.inference_mode():
        for some in track(batches, f"{name} loss", len(batches)):
            given = inputs.model_inputs(model, some.ids_BT, some.mask_BT)
            way, ends = shared_prefix.run_subnetworks(model, given, cuts)
            rows.append(shared_prefix.sequence_sums(way, ends, cuts, reading, some.targets_BT))
    sums_KN = torch.cat(rows, dim=1)
    count_N = torch.cat([(some.targets_BT != inputs.NO_TARGET).sum(1) for some in batches])
    return [
        {f"{name}/{key}": number for key, number in loss_summary(sums_N, count_N, vocabulary_size(model)).items()}
        for sums_N in sums_KN
    ]


def loss_summary(sums_N: "Tensor", count_N: "Tensor", vocabulary: int) -> dict[str, float]:
    """The figures of one loss; the standard error is taken over the sequences' means."""
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
    """V, the number of rows of the embedding."""
    from transformers import PreTrainedModel

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    assert isinstance(base, PreTrainedModel)
    return base.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportReturnType, reportAttributeAccessIssue, reportIndexIssue]
