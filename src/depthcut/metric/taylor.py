"""First-order Taylor importance of a layer's weights (Shortened LLaMA, arXiv:2402.02834, section 3.1: Taylor)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.metric import Subject


@strict
class Taylor(Metric):
    """``sum_ij |W_ij dL/dW_ij|`` over all weights of a layer, norms included; L is the mean loss over all tokens.

    The gradient is summed over the whole text before the absolute value is taken, as in the paper's code. Each weight's
    gradient is used and freed at once; the sums take one float32 per weight.

    Attributes:
        batch: sequences per backward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    bases: ClassVar[tuple[str, ...]] = ("none",)
    streams: ClassVar[bool] = False
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score the single layers."""
        from depthcut.model.decoder import inputs
        from depthcut.model.decoder import layers as decoder_layers
        from depthcut.runtime.progress import track

        assert not removed
        model, text = subject.dense.whole(), subject.texts.calibration()
        parts = [
            layer.get_submodule(decoder_layers.unit_name(layer, unit)) for layer in decoder_layers.layer_list(model)
        ]
        layers = [list(part.parameters()) for part in parts]
        tokens = int((text.lengths - 1).sum())
        batches = math.ceil(len(text) / self.batch)
        with GradientProducts(model, layers) as products:
            for ids_BT, mask_BT in track(text.batches(self.batch), "taylor", batches):
                given = inputs.model_inputs(model, ids_BT, mask_BT)
                losses_BT = inputs.token_losses(model(**given).logits[:, :-1], inputs.next_token_targets(given))
                (losses_BT.sum() / tokens).backward()
            scores = [sum(products.size(weight) for weight in layer) for layer in layers]
        return Scores.of_layers(scores, [0.0] * len(layers), len(text))


class GradientProducts:
    """Sums W * dL/dW of the decoder layers' weights inside the ``with``; no other weight gets a gradient."""

    def __init__(self, model: "nn.Module", layers: "Sequence[list[nn.Parameter]]") -> None:
        self.before = {weight: weight.requires_grad for weight in model.parameters()}
        self.weights = [weight for layer in layers for weight in layer]
        self.sums: dict[nn.Parameter, Tensor] = {}

    def __enter__(self) -> "GradientProducts":
        for weight in self.before:
            weight.requires_grad_(False)
        for weight in self.weights:
            weight.requires_grad_(True)
        self.hooks = [weight.register_post_accumulate_grad_hook(self.add) for weight in self.weights]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        for weight, needed in self.before.items():
            weight.requires_grad_(needed)

    def add(self, weight: "nn.Parameter") -> None:
        """Add a weight's product with its gradient, and free the gradient."""
        import torch

        assert weight.grad is not None
        if weight not in self.sums:
            self.sums[weight] = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
        self.sums[weight].addcmul_(weight.detach(), weight.grad)  # in float32, without a copy of either
        weight.grad = None

    def size(self, weight: "nn.Parameter") -> float:
        """Return the sum of the absolute values."""
        return self.sums[weight].abs().double().sum().item()
