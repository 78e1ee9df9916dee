"""Importance of a layer's weights from the gradients of LoRA adapters alone (LoRAPrune, arXiv:2305.18403, eq. 10)."""

import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track
from depthcut.runtime.strict import Rank, strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.metric import Subject

ADAPTER_NAME = "depthcut"
log = logging.getLogger("depthcut")


@strict
class LoraGradient(Metric):
    """``sum_ij [dL/d(BA)_ij (W + BA)_ij]^2`` over the weights of linear layers; L is the mean loss over all tokens.

    The adapters are freshly initialised, A random and B zero: the gradient is seen through A alone, as ``dL/dW A^T A``.
    The base is frozen and may be quantised. Gradients are summed over the whole text, then squared as in the paper; its
    code takes absolute values instead. :mod:`depthcut.model.decoder.lora_gradients` derives the formula.

    Attributes:
        rank: rank of the adapters; a higher rank comes nearer to the gradient of the weights themselves.
        seed: seed of A.
        batch: sequences per backward pass.
    """

    rank: Rank
    seed: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(gt=0)]
    streams: ClassVar[bool] = False
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def prepare(self, subject: "Subject", unit: Unit) -> None:
        """Check that each unit has linear layers; log in one line which weights have no part in the scores.

        Raises:
            UserError: if a unit has none, or the rank exceeds their widths.
        """
        from depthcut.model.decoder import layers as decoder_layers

        check_rank(
            list(decoder_layers.layer_list(decoder_layers.meta_model(subject.dense.config))),
            unit,
            self.rank,
        )

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score single units; remove the adapters afterwards."""
        from depthcut.model.decoder import inputs
        from depthcut.model.decoder import layers as decoder_layers

        assert not removed
        model, text = subject.dense.whole(), subject.texts.calibration()
        units = [
            layer.get_submodule(decoder_layers.unit_name(layer, unit)) for layer in decoder_layers.layer_list(model)
        ]
        tokens = int((text.lengths - 1).sum())
        batches = math.ceil(len(text) / self.batch)
        with temporary_adapters(model, self.rank, self.seed):
            for ids_BT, mask_BT in track(text.batches(self.batch), "lora_gradient", batches):
                given = inputs.model_inputs(model, ids_BT, mask_BT)
                # The sum, because float16 cannot hold the gradients of the mean.
                inputs.token_losses(model(**given).logits[:, :-1], inputs.next_token_targets(given)).sum().backward()
            scores = [module_importance(part, tokens) for part in units]
        return Scores.of_layers(scores, [0.0] * len(scores), len(text))


def check_rank(layers: "list[nn.Module]", unit: Unit, rank: int) -> None:
    """Check the units and the rank; see :meth:`LoraGradient.prepare`."""
    from depthcut.model.decoder import layers as decoder_layers
    from depthcut.model.decoder import linear

    units = [layer.get_submodule(decoder_layers.unit_name(layer, unit)) for layer in layers]
    found = [list(linear.linear_layers(part).values()) for part in units]
    if bare := [index for index, each in enumerate(found) if not each]:
        raise UserError(f"metric=lora_gradient needs linear layers; {unit} {bare[0]} of this model has none")
    limit = max(min(linear.linear_features(each)) for part in found for each in part)
    if rank > limit:
        raise UserError(f"metric.rank must be at most {limit}, the width of the layers it scores, got {rank}")
    covered = {id(weight) for part in found for each in part for weight in each.parameters()}
    share, names = linear.uncovered_share(map(linear.weight_matrices, units), covered)
    if names:
        left = ", ".join(names)
        log.warning("metric=lora_gradient scores %.0f%% of the weights; not scored: %s", 100 - 100 * share, left)


@contextmanager
def temporary_adapters(model: "nn.Module", rank: int, seed: int) -> Generator[None]:
    """Attach fresh adapters to all linear layers of the decoder inside the ``with``; nothing else is trainable."""
    import torch
    from peft import LoraConfig, LoraModel
    from transformers.pytorch_utils import Conv1D

    from depthcut.model.decoder import layers as decoder_layers
    from depthcut.model.decoder import linear

    trained = {weight: weight.requires_grad for weight in model.parameters()}
    stem, layers = decoder_layers.layer_prefix(model), decoder_layers.layer_list(model)
    found = {
        f"{stem}.{index}.{name}": each
        for index, layer in enumerate(layers)
        for name, each in linear.linear_layers(layer).items()
    }
    stored = any(isinstance(each, Conv1D) for each in found.values())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = LoraModel(
            model, LoraConfig(r=rank, lora_alpha=rank, target_modules=[*found], fan_in_fan_out=stored), ADAPTER_NAME
        )
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # gradients accumulate over the batches
    try:
        yield
    finally:
        tuner.unload()
        for weight, needed in trained.items():
            weight.requires_grad_(needed)


def module_importance(part: "nn.Module", tokens: int) -> float:
    """Return the importance of all weights in ``part`` with adapters, which hold gradients summed over ``tokens``."""
    from peft.tuners.lora import LoraLayer

    from depthcut.model.decoder import lora_gradients

    pairs: list[Any] = [module for module in part.modules() if isinstance(module, LoraLayer)]
    total = 0.0
    for pair in pairs:
        a_RI, b_OR = pair.lora_A[ADAPTER_NAME].weight, pair.lora_B[ADAPTER_NAME].weight
        if b_OR.grad is not None:  # otherwise no token reached this layer
            grads = a_RI.grad / tokens, b_OR.grad / tokens
            w_OI = lora_gradients.dequantised_weight(pair.get_base_layer()).float()
            total += lora_importance(w_OI, a_RI.detach(), b_OR.detach(), *grads)
    return total


def lora_importance(w_OI: "Tensor", a_RI: "Tensor", b_OR: "Tensor", grad_a_RI: "Tensor", grad_b_OR: "Tensor") -> float:
    """Return equation 10, summed over the weights."""
    import torch

    from depthcut.model.decoder import lora_gradients

    return lora_gradients.weight_importance(w_OI, a_RI, b_OR, grad_a_RI, grad_b_OR).sum(dtype=torch.float64).item()
