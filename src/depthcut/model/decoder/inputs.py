"""How a batch of calibration or validation text goes into a model, and what it is to predict there."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from depthcut.model.decoder import layers

NO_TARGET = -100
# Names of modules and buffers that hold a row for each position: OPT, GPT-2, GPT-Neo; GPT-J, CodeGen.
POSITION_TABLES = re.compile(r"(^|\.)(wpe|\w*position\w*)$")


def model_inputs(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
    """What ``model`` is called with, on its own device, without a KV cache; a batch without padding needs no mask."""
    device = next(model.parameters()).device
    mask = None if mask_BT.all() else mask_BT.to(device)
    return {"input_ids": ids_BT.to(device), "attention_mask": mask, "use_cache": False}


def next_token_targets(given: dict[str, Any]) -> Tensor:
    """The next token of each position but the last, B x (T-1); ``NO_TARGET`` where that is padding."""
    next_BT, mask_BT = given["input_ids"][:, 1:], given["attention_mask"]
    return next_BT if mask_BT is None else next_BT.masked_fill(mask_BT[:, 1:] == 0, NO_TARGET)


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Each token's negative log-likelihood in nats, float32 B x T; 0 where there is no target."""
    rows = zip(logits_BTV, targets_BT, strict=True)  # one at a time: float32 logits of a batch are large
    return torch.stack([cross_entropy(row_TV.float(), row_T, reduction="none") for row_TV, row_T in rows])


def position_count(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has a row for; None where they are computed, as in rotary models."""
    decoder, text = layers.decoder_stack(model), layers.text_config(model.config)
    tables = [name for name, part in decoder.named_modules() if isinstance(part, nn.Embedding)]
    tables += [name for name, _ in decoder.named_buffers()]
    known = any(POSITION_TABLES.search(name) for name in tables)
    return int(text.max_position_embeddings) if known else None
