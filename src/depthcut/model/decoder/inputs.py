"""Model inputs, next-token targets and token losses for a batch of calibration or validation text."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from depthcut.model.decoder import layers

NO_TARGET = -100
# Names of modules and buffers with one row per position: OPT, GPT-2, GPT-Neo; GPT-J, CodeGen.
POSITION_TABLES = re.compile(r"(^|\.)(wpe|\w*position\w*)$")


def model_inputs(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
    """Return keyword arguments for ``model``, on its device, without a KV cache; without padding, no mask is needed."""
    device = next(model.parameters()).device
    mask = None if mask_BT.all() else mask_BT.to(device)
    return {"input_ids": ids_BT.to(device), "attention_mask": mask, "use_cache": False}


def next_token_targets(given: dict[str, Any]) -> Tensor:
    """Return the next token of each position except the last, B x (T-1); ``NO_TARGET`` if it is padding."""
    next_BT, mask_BT = given["input_ids"][:, 1:], given["attention_mask"]
    return next_BT if mask_BT is None else next_BT.masked_fill(mask_BT[:, 1:] == 0, NO_TARGET)


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return each token's negative log-likelihood in nats, float32 B x T; 0 without a target."""
    rows = zip(logits_BTV, targets_BT, strict=True)  # one at a time, because float32 logits of a batch are large
    return torch.stack([cross_entropy(row_TV.float(), row_T, reduction="none") for row_TV, row_T in rows])


def position_count(model: PreTrainedModel) -> int | None:
    """Return the number of rows in a model's position table; None if positions are computed, as in rotary models."""
    decoder, text = layers.decoder_stack(model), layers.text_config(model.config)
    tables = [name for name, part in decoder.named_modules() if isinstance(part, nn.Embedding)]
    tables += [name for name, _ in decoder.named_buffers()]
    known = any(POSITION_TABLES.search(name) for name in tables)
    return int(text.max_position_embeddings) if known else None
