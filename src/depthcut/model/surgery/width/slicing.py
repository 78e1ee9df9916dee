"""Permanent narrowing of a model, in place: rows and columns of its matrices are removed, also from their adapters."""

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedConfig

from depthcut.model.decoder import layers
from depthcut.model.surgery.width import groups
from depthcut.model.surgery.width.groups import WidthGroups
from depthcut.model.surgery.width.widths import Widths

# Names for the number of heads in attentions and configs, and for the number of FFN channels in configs.
HEAD_COUNT_KEYS = ("num_heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads")
CHANNEL_COUNT_KEYS = ("intermediate_size", "ffn_dim")


def narrow_model(model: nn.Module, widths: Widths) -> None:
    """Remove all groups except those in ``widths``; if all layers are alike, update the config.

    Args:
        model: not quantised; it may have adapters, or be on the meta device.
        widths: of this model's layers.
    """
    stack = layers.layer_list(model)
    assert len(stack) == len(widths.kept)
    for (number, kind), kept in widths.narrowed_groups().items():
        known = groups.layer_groups(stack[number])[kind]
        for linear, axis in known.linears(stack[number]):
            slice_linear(linear, axis, group_indices(kept, known.count, linear, axis))
        update_head_counts(known, stack[number], len(kept))
    update_width_config(model, widths)


def group_indices(kept: Sequence[int], count: int, linear: Any, axis: int) -> list[int]:
    """Return the rows or columns of a linear layer that belong to the kept ones of its ``count`` groups."""
    size = (linear.in_features if axis else linear.out_features) // count
    return [group * size + at for group in kept for at in range(size)]


def slice_linear(linear: Any, axis: int, places: Sequence[int]) -> None:
    """Keep these rows (0) or columns (1) of a linear layer's weight, bias and adapters."""
    base: Any = linear.get_base_layer() if isinstance(linear, LoraLayer) else linear
    assert base.weight.is_floating_point(), "quantised weights cannot be sliced"
    slice_parameter(base, "weight", axis, places)
    if axis == 0 and base.bias is not None:
        slice_parameter(base, "bias", 0, places)
    factors: Any = (linear.lora_A if axis else linear.lora_B) if isinstance(linear, LoraLayer) else {}
    for factor in factors.values():
        slice_parameter(factor, "weight", axis, places)
    for part in {base, linear, *factors.values()}:
        setattr(part, "in_features" if axis else "out_features", len(places))


def slice_parameter(part: nn.Module, name: str, axis: int, places: Sequence[int]) -> None:
    """Keep these rows or columns of a parameter."""
    old = part.get_parameter(name)
    index = torch.tensor(places, device=old.device)
    setattr(part, name, nn.Parameter(old.detach().index_select(axis, index), requires_grad=old.requires_grad))


def update_head_counts(known: WidthGroups, layer: nn.Module, left: int) -> None:
    """Update the head counts of an attention that stores them itself (OPT)."""
    owner = vars(known.module(layer))
    owner.update({key: owner[key] * left // known.count for key in HEAD_COUNT_KEYS if isinstance(owner.get(key), int)})


def update_width_config(model: nn.Module, widths: Widths) -> None:
    """Update the config if one number of each kind fits all layers and the config has keys for both."""
    whole = {tuple(sorted(each.items())) for each in widths.original}
    left = {tuple(sorted((kind, len(groups)) for kind, groups in each.items())) for each in widths.kept}
    if len(whole) > 1 or len(left) > 1 or whole == left:
        return
    config: Any = model.config
    new = copy.deepcopy(config)
    text: Any = layers.text_config(new)
    counts = dict(next(iter(left)))
    if "heads" in counts:
        owner = vars(groups.layer_groups(layers.layer_list(model)[0])["heads"].module(layers.layer_list(model)[0]))
        text.head_dim = owner["head_dim"]
        before = dict(next(iter(whole)))["heads"]
        for key in HEAD_COUNT_KEYS:
            if isinstance(getattr(text, key, None), int):
                setattr(text, key, getattr(text, key) * counts["heads"] // before)
    for key in CHANNEL_COUNT_KEYS:
        if "channels" in counts and hasattr(text, key):
            setattr(text, key, counts["channels"])
    if config_describes_model(new, model):
        vars(layers.text_config(config)).update(vars(text))


def config_describes_model(config: PreTrainedConfig, model: nn.Module) -> bool:
    """Return whether a config, read back from JSON, builds layers like those of ``model``, with or without adapters."""
    try:
        reread = type(config).from_dict(json.loads(config.to_json_string()))
        built = layers.layer_list(layers.meta_model(reread))
        return [grouped_shapes(layer) for layer in built] == [
            grouped_shapes(layer) for layer in layers.layer_list(model)
        ]
    except (ValueError, StrictDataclassError, RuntimeError):
        return False


def grouped_shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's grouped matrices, and their numbers of groups."""
    found: dict[str, tuple[int, ...]] = {}
    for kind, known in groups.layer_groups(layer).items():
        for at, (linear, _) in enumerate(known.linears(layer)):
            part: Any = linear
            found[f"{kind}.{at}"] = (known.count, part.in_features, part.out_features)
    return found
