"""Objectives of a healing step: the next-token loss, without the logits of all positions in memory at once.

Legend: B sequences, T tokens, N positions, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from depthcut.heal.training import document_mask
from depthcut.heal.training.batches import MicroBatch
from depthcut.model.decoder import layers
from depthcut.model.decoder.inputs import NO_TARGET
from depthcut.model.decoder.layerwise import stub_layers

Objective = Callable[[nn.Module, MicroBatch], Tensor]
"""Maps a model and a batch to a mean over tokens; a loss of predictions is in nats."""
ChunkLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits N x V, in the model's dtype, and the target of each position to the sum of the losses."""
CHUNK_BYTES = 2**28


@dataclass(frozen=True)
class MixedPrecision:
    """An objective with bfloat16 products of float32 weights."""

    objective: Objective

    def __call__(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """Return the loss of one batch."""
        with torch.autocast(batch.ids_BT.device.type, torch.bfloat16):
            return self.objective(model, batch)


def next_token_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Return the mean cross-entropy of ``ids[:, 1:]`` given the tokens before them, in float32."""
    decoded = decode(model, batch.ids_BT, batch.places_BT)
    return chunked_loss(model, decoded, next_tokens(batch), summed_cross_entropy, batch.targets)


def next_tokens(batch: MicroBatch) -> Tensor:
    """Return the next token of each position but the last, B x (T-1); ``NO_TARGET`` if it begins another document."""
    next_BT = batch.ids_BT[:, 1:]
    return next_BT if batch.places_BT is None else next_BT.masked_fill(batch.places_BT[:, 1:] == 0, NO_TARGET)


def summed_cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the sum of the tokens' negative log-likelihoods; 0 for ``NO_TARGET``."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum", ignore_index=NO_TARGET)


def decode(model: nn.Module, ids_BT: Tensor, places_BT: Tensor | None = None) -> ModelOutput:
    """Run the decoder; its ``last_hidden_state``, B x T x D after the final norm, is the input of the head."""
    return layers.decoder_stack(model)(**document_mask.decoder_inputs(model, ids_BT, places_BT))


def chunked_loss(
    model: nn.Module, decoded: ModelOutput, targets: Tensor, loss: ChunkLoss, count: float | None = None
) -> Tensor:
    """Return the mean over positions of the ``loss`` of their logits, with a few hundred MB in memory at a time.

    Args:
        model: its head computes the logits, with any cap or scale.
        decoded: the decoder's output at T + 1 positions; the last one has no target.
        targets: B x T x ..., the target of each position.
        loss: its gradient is taken chunk by chunk, in the forward pass.
        count: divisor of the sum; None: the number of positions.
    """
    head = base_model(model)
    trained = [each for each in head_parameters(head) if each.requires_grad]
    h_ND, targets_N = final_hidden_states(decoded), targets.flatten(0, 1)

    def summed(part_ND: Tensor, wanted_N: Tensor) -> Tensor:
        return loss(project_logits(head, type(decoded), part_ND), wanted_N)

    mean: Any = _ChunkedLoss.apply(h_ND, targets_N, summed, positions(head), count or len(h_ND), *trained)
    return mean


def final_hidden_states(decoded: ModelOutput) -> Tensor:
    """Return the hidden states that predict a token, N x D: all but the last of each sequence."""
    return decoded["last_hidden_state"][:, :-1].flatten(0, 1)


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of the head, including an embedding tied to it.

    A multimodal model keeps its towers and projectors next to the decoder, in the part that holds it.
    """
    decoder, output = layers.decoder_stack(model), model.get_output_embeddings()
    parts = [part for part in model.children() if not any(each is decoder for each in part.modules())]
    tied = list(output.parameters()) if isinstance(output, nn.Module) else []
    found = [*tied, *model.parameters(recurse=False), *(each for part in parts for each in part.parameters())]
    return list({id(each): each for each in found}.values())


def project_logits(head: PreTrainedModel, kind: type[ModelOutput], h_ND: Tensor) -> Tensor:
    """Return the logits that the head computes from hidden states, N x V.

    Args:
        head: the model; its decoder is replaced by a stub that returns these states and nothing else.
        kind: the class of its decoder's output: heads read its fields (router logits, cross-attentions).
        h_ND: the hidden states.
    """
    given = kind(last_hidden_state=h_ND[None])
    ids = torch.zeros(1, 1, dtype=torch.long, device=h_ND.device)
    with stub_layers(nn.ModuleList([layers.decoder_stack(head)]), lambda _: lambda *_, **__: given):
        return head(input_ids=ids, use_cache=False).logits[0]


def positions(head: PreTrainedModel) -> int:
    """Return the number of positions whose logits fit into a chunk."""
    return max(1, CHUNK_BYTES // (4 * layers.text_config(head.config).vocab_size))


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model under the adapters, if there are any."""
    base: Any = model
    while not isinstance(base, PreTrainedModel):
        base = base.get_base_model()
    return base


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients of the hidden states, and of a trained head, together with the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        targets_N: Tensor,
        loss: ChunkLoss,
        size: int,
        count: float,
        *trained: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=h_ND.device)
        wanted = any(ctx.needs_input_grad)
        grad_ND = torch.empty_like(h_ND) if wanted else None
        grads = [torch.zeros_like(each, dtype=torch.float32) for each in trained] if wanted else []
        for start in range(0, len(h_ND), size):
            here = slice(start, start + size)
            with torch.set_grad_enabled(wanted):
                part_ND = h_ND[here].detach().requires_grad_(wanted)
                summed = loss(part_ND, targets_N[here])
            total += summed.detach()
            if grad_ND is not None:
                grad_ND[here], *more = torch.autograd.grad(summed, [part_ND, *trained])
                for sum_, each in zip(grads, more, strict=True):
                    sum_ += each
        ctx.count = count
        ctx.save_for_backward(*([] if grad_ND is None else [grad_ND, *grads]))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        scale = grad_outputs[0] / ctx.count
        grad_ND, *grads = ctx.saved_tensors
        head = [(each * scale) for each in grads]
        return grad_ND * scale.to(grad_ND.dtype), None, None, None, None, *head
