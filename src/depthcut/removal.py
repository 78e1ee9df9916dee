"""All models without one layer, from one pass: without layer i a model is the dense one up to i, and branches there.

Layer j is applied to the dense stream and to those of all candidates i < j before layer j + 1 is touched: L + L(L-1)/2
layer passes instead of L(L-1), and each layer's weights are read once a batch. The head is extra, once a candidate.

Legend: B batch, T tokens, D width, V vocabulary, L layers.
"""

import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from depthcut import depth, forward
from depthcut.progress import track

if TYPE_CHECKING:
    from depthcut.lab import Lab

Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From a candidate's logits (B x T x V), the dense ones and the targets (-100 where none) to a value a token, B x T."""


def without_each(
    lab: "Lab", removed: tuple[int, ...], batch: int, measure: Measure, name: str
) -> tuple[Tensor, Tensor]:
    """Measure the model without the layers ``removed`` and without each of the others in turn.

    Returns:
        For each layer that is left the mean of ``measure`` over all tokens of the calibration text, and its standard
        error over the sequences.
    """
    model, text = lab.dense(), lab.calibration()
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    with torch.inference_mode():
        for ids_BT, mask_BT in track(text.batches(batch), name, math.ceil(len(text) / batch)):
            values_LB, count_B = measured(model, ids_BT, mask_BT, removed, measure)
            sums.append(values_LB.cpu())
            counts.append(count_B.cpu())
    sums_LN, counts_N = torch.cat(sums, dim=1), torch.cat(counts)
    mean_L = sums_LN.sum(1) / counts_N.sum()
    off_LN = sums_LN - mean_L[:, None] * counts_N
    samples = len(counts_N)
    stderr_L = (off_LN.square().sum(1) * samples / max(samples - 1, 1)).sqrt() / counts_N.sum()
    return mean_L, stderr_L


def measured(
    model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, removed: tuple[int, ...], measure: Measure
) -> tuple[Tensor, Tensor]:
    """One batch: for each layer left and each sequence the sum of ``measure`` over its tokens, and their number."""
    inputs = forward.inputs(model, ids_BT, mask_BT)
    targets_BT = forward.targets(inputs)
    dense_BTV = model(**inputs).logits[:, :-1].float() if removed else None
    with depth.bypass(model, removed) if removed else nullcontext():
        output, without_LBTD = streams(model, inputs)
        with tail(model, inputs, output) as logits_of:
            if dense_BTV is None:
                dense_BTV = logits_of(plain(output))[:, :-1].float()
            sums = [measure(logits_of(h)[:, :-1].float(), dense_BTV, targets_BT).double().sum(1) for h in without_LBTD]
    return torch.stack(sums), (targets_BT != forward.NO_TARGET).sum(1)


def streams(model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """The last layer's output as it gives it, and the stream in its place (B x T x D) without each of the layers."""
    branched: list[Tensor] = []
    entered: dict[str, Any] = {}

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.update(args=args[1:], kwargs={key: value for key, value in kwargs.items() if key != "hidden_states"})
        entered["h_BTD"] = args[0] if args else kwargs["hidden_states"]

    def leave(layer: nn.Module, _: Any, output: Any) -> None:
        for candidate, h_BTD in enumerate(branched):
            branched[candidate] = plain(layer.forward(h_BTD, *entered["args"], **entered["kwargs"]))
        branched.append(entered["h_BTD"])
        entered["output"] = output

    with ExitStack() as hooks:
        for layer in depth.layers(model):
            hooks.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(leave))
        depth.decoder(model)(**inputs)
    return entered["output"], branched


def plain(output: Any) -> Tensor:
    """A layer's output without what some architectures return beside it."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def tail(model: nn.Module, inputs: dict[str, Any], output: Any) -> Generator[Callable[[Tensor], Tensor]]:
    """Inside the ``with``, a function from the stream behind the last layer to logits: the final norm and the head.

    The model runs with its last layer only, and that one hands out the stream, in the form of ``output``, uncomputed.
    """
    stack = depth.layers(model)
    last = vars(stack[-1])
    with depth.bypass(model, range(len(stack) - 1)):

        def logits_of(h_BTD: Tensor) -> Tensor:
            given = (h_BTD, *output[1:]) if isinstance(output, tuple) else h_BTD
            last["forward"] = lambda *_, **__: given
            return model(**inputs).logits

        try:
            yield logits_of
        finally:
            last.pop("forward", None)
