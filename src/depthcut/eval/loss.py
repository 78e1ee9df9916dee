"""Loss and perplexity on held-out text, also over log V to compare vocabularies (Gromov et al., appendix A.2)."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from depthcut.eval import Eval
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.lab import Lab


@strict
class Loss(Eval):
    """Mean negative log-likelihood of a token of ``data.validation``, in nats.

    Attributes:
        batch: sequences a forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def reads(self, lab: "Lab") -> Any:
        """The validation text, tokenised."""
        return lab.text_identity("validation")

    def prepare(self, lab: "Lab") -> None:
        """Nothing: the text is checked with the others."""
        del lab

    def __call__(self, model: "nn.Module", lab: "Lab") -> dict[str, float]:
        """Measure ``validation/loss`` with its standard error, ``loss_over_log_v`` and ``perplexity``.

        A model whose loss is not finite gets no key.
        """
        import torch

        from depthcut.progress import track

        text = lab.validation()
        rows: list[Tensor] = []
        with torch.inference_mode():
            for ids_BT, mask_BT in track(
                text.batches(self.batch), "validation loss", math.ceil(len(text) / self.batch)
            ):
                rows.append(sequence_losses(model, ids_BT, mask_BT))
        sums_N, counts_N = torch.cat(rows, dim=1).double().cpu()
        loss = (sums_N.sum() / counts_N.sum()).item()
        if not math.isfinite(loss):
            return {}
        return summary(loss, sums_N / counts_N, vocabulary(model))


def sequence_losses(model: "nn.Module", ids_BT: "Tensor", mask_BT: "Tensor") -> "Tensor":
    """For each sequence the sum of its tokens' losses and their number, 2 x B; padding counts for nothing."""
    import torch

    from depthcut import forward

    given = forward.inputs(model, ids_BT, mask_BT)
    targets_BT = forward.targets(given)
    losses_BT = forward.token_losses(model(**given).logits[:, :-1], targets_BT)
    return torch.stack([losses_BT.sum(1), (targets_BT != forward.NO_TARGET).sum(1)])


def summary(loss: float, means_N: "Tensor", vocabulary: int) -> dict[str, float]:
    """The figures of one loss; the standard error is taken over the sequences' means."""
    stderr = (means_N.std() / math.sqrt(len(means_N))).item() if len(means_N) > 1 else 0.0
    numbers = {
        "validation/loss": loss,
        "validation/loss_stderr": stderr,
        "validation/loss_over_log_v": loss / math.log(vocabulary),
    }
    if loss < 700:  # beyond it exp overflows
        numbers["validation/perplexity"] = math.exp(loss)
    return numbers


def vocabulary(model: "nn.Module") -> int:
    """V, the number of rows of the embedding."""
    from transformers import PreTrainedModel

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    assert isinstance(base, PreTrainedModel)
    return base.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportReturnType, reportAttributeAccessIssue, reportIndexIssue]
