"""Self-speculative decoding: a model without its shared layers drafts for the full one (FlexiGPT, arXiv:2501.14713)."""

import copy
from typing import TYPE_CHECKING

from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def draft_model(model: "nn.Module", tokens: int = 5) -> "PreTrainedModel":
    """Return ``model`` without shared layers, on the same weights, for ``model.generate(..., assistant_model=...)``.

    Args:
        model: made with ``replace=shared`` or ``replace=extend``, as :func:`depthcut.load` returns it, or healed; left
            unchanged.
        tokens: number of tokens drafted before each verification by the full model.

    Returns:
        A model with its own config and layer numbers. It holds no tensor that ``model`` does not hold.

    Raises:
        UserError: if no layer of ``model`` is shared.
    """
    from peft import PeftModel
    from transformers import PreTrainedModel

    from depthcut.model.decoder import layers
    from depthcut.model.surgery import shared

    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(whole, PreTrainedModel)
    shared_layers = shared.shared_layer_bases(whole)
    if not shared_layers:
        raise UserError("this model has no shared layers to draft without; use one made with replace=shared")
    draft = copy.deepcopy(whole, deepcopy_memo(whole))
    layers.cut_layers(draft, shared_layers)
    settings = draft.generation_config
    assert settings is not None
    settings.num_assistant_tokens = tokens
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0.0  # otherwise drafting stops at low confidence
    return draft


def deepcopy_memo(model: "nn.Module") -> "dict[int, object]":
    """Return a memo for ``deepcopy``: the tensors and quantisation states that a copy of ``model`` reuses, by id."""
    tensors = [*model.parameters(), *model.buffers()]
    values = (value for part in model.modules() for value in vars(part).values())
    states = [value for value in values if type(value).__module__.startswith("bitsandbytes")]
    return {id(each): each for each in (*tensors, *states)}
