"""Self-speculative decoding: a model without its shared layers drafts for the whole (FlexiGPT, arXiv:2501.14713)."""

import copy
from typing import TYPE_CHECKING

from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def draft_model(model: "nn.Module", tokens: int = 5) -> "PreTrainedModel":
    """The same model without its shared layers, on the same weights, for ``model.generate(..., assistant_model=...)``.

    Args:
        model: of ``replace=shared`` or ``replace=extend``, as :func:`depthcut.load` gives it or healed; left as it is.
        tokens: that are written before the whole model looks at them.

    Returns:
        A model with a config and layer numbers of its own. It holds no tensor that ``model`` does not hold.

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
        raise UserError(
            "no layer of this model is shared, so there is none to draft without; take one of replace=shared"
        )
    draft = copy.deepcopy(whole, deepcopy_memo(whole))
    layers.cut_layers(draft, shared_layers)
    settings = draft.generation_config
    assert settings is not None
    settings.num_assistant_tokens = tokens
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0.0  # else it stops where it is in doubt
    return draft


def deepcopy_memo(model: "nn.Module") -> "dict[int, object]":
    """What a copy of ``model`` is to share with it, by identity: its tensors, and how they are quantised."""
    tensors = [*model.parameters(), *model.buffers()]
    values = (value for part in model.modules() for value in vars(part).values())
    states = [value for value in values if type(value).__module__.startswith("bitsandbytes")]
    return {id(each): each for each in (*tensors, *states)}
