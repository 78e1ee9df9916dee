"""The layer list of a model: find, cut, bypass, renumber. No other module depends on its location.

The list is found by structure instead of name: the ``ModuleList`` as long as the text config says, in the module that
this config built. A cut is checked by rebuilding the model, without memory, from its trimmed config.
"""

import copy
import re
import tempfile
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from depthcut.cut.plan import Plan, Unit
from depthcut.model.decoder.bypassed_layers import BypassedLayers
from depthcut.model.decoder.config_lists import rearrange_lists
from depthcut.runtime.errors import UserError

SUPPORTED_MODELS = (
    "depthcut supports Llama, Mistral, Qwen2, Qwen3, Phi, Phi-3, Gemma2, Gemma3, OPT, GPT-NeoX and similar"
)
# Attribute names in transformers for a layer's index, which addresses the KV cache.
LAYER_INDEX_KEYS = ("layer_idx", "layer_id", "layer_num", "layer_number")
# Attributes that may differ between equal layers; Gemma 4's last layers store their keys for other models.
IGNORED = {*LAYER_INDEX_KEYS, "training", "store_full_length_kv"}
# Config keys that couple layers: the largest value that does not, and the meaning of a larger one.
UNSUPPORTED = {
    "num_kv_shared_layers": (0, "its last layers read keys and values of earlier ones"),
    "altup_num_inputs": (1, "its layers pass on several hidden states"),
}
# Class names of a layer's two sublayers.
SUBLAYER_PATTERNS = {
    "attention": re.compile("attention", re.I),
    "mlp": re.compile("mlp|feed_?forward|ffn|moe|mixture", re.I),
}


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config that counts the layers: ``config`` itself, or the text part of a multimodal one.

    Raises:
        UserError: for an encoder-decoder, a model with its own code (Qwen-1), or one that generates no text.
    """
    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{kind} is an encoder-decoder, which has two stacks of layers; {SUPPORTED_MODELS}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        why = "not a language model in transformers (models with remote code, such as Qwen-1, are not supported)"
        raise UserError(f"{kind} is {why}; {SUPPORTED_MODELS}")
    text = config.get_text_config(decoder=True)
    for key, (most, why) in UNSUPPORTED.items():
        if (value := getattr(text, key, most)) is not None and value > most:
            raise UserError(f"{kind} ({key}={value}): {why}, which is not supported yet; {SUPPORTED_MODELS}")
    return text


def layer_list(model: nn.Module) -> nn.ModuleList:
    """Return the decoder's layer list, also in a model with adapters. Raises as :func:`layer_prefix`."""
    stack = model.get_submodule(layer_prefix(model))
    assert isinstance(stack, nn.ModuleList)
    return stack


def decoder_stack(model: nn.Module) -> PreTrainedModel:
    """Return the decoder without the head: embeddings, layers, final norm. Raises as :func:`layer_prefix`."""
    decoder = _enclosing_model(model, layer_prefix(model))
    assert decoder is not None
    return decoder


def layer_prefix(model: nn.Module) -> str:
    """Return the dotted name of the layer list in ``model``, for example ``model.layers``.

    Raises:
        UserError: as :func:`text_config`, or if the model has no such list, or several.
    """
    text = text_config(_transformers_config(model))
    depth = getattr(text, "num_hidden_layers", None)
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    lists = [name for name in lists if getattr(_enclosing_model(model, name), "config", None) is text]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        found = f"several lists of {depth} layers ({', '.join(outermost)})" if lists else f"no list of {depth} layers"
        raise UserError(f"{type(model).__name__} has {found}; {SUPPORTED_MODELS}")
    return outermost[0]


def _transformers_config(model: nn.Module) -> PreTrainedConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise UserError(f"{type(model).__name__} is not a transformers model: it has no config; {SUPPORTED_MODELS}")
    return config


def _enclosing_model(model: nn.Module, name: str) -> PreTrainedModel | None:
    """Return the innermost transformers model around the module ``name``."""
    while name:
        name = name.rpartition(".")[0]
        part = model.get_submodule(name)
        if isinstance(part, PreTrainedModel):
            return part
    return None


def unit_name(layer: nn.Module, unit: Unit) -> str:
    """Return the name of ``unit`` in ``layer``, for example ``self_attn`` or ``mlp``; empty for the layer itself.

    Raises:
        UserError: if the layer has no separate module for it (OPT has no MLP).
    """
    if unit == "layer":
        return ""
    names = [name for name, part in layer.named_children() if SUBLAYER_PATTERNS[unit].search(type(part).__name__)]
    if len(names) != 1:
        there = ", ".join(name for name, _ in layer.named_children())
        raise UserError(f"{type(layer).__name__} has no separate {unit} ({there}); use prune.unit=layer")
    return names[0]


def split_tensor_name(name: str, prefix: str) -> tuple[int, str] | None:
    """Split ``model.layers.7.mlp.bias`` into (7, ``mlp.bias``); return None for a tensor outside the layer list."""
    found = re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else None


def renumber_tensor_names(names: Iterable[str], prefix: str, plan: Plan, unit_prefix: str) -> dict[str, str]:
    """Return the old name of each tensor that ``plan`` keeps, by its name under consecutive layer numbers."""
    new = {old: number for number, old in enumerate(plan.keep)}
    renamed: dict[str, str] = {}
    for name in names:
        layer, rest = split_tensor_name(name, prefix) or (None, "")
        if layer is None:
            renamed[name] = name
        elif layer in new and not (layer in plan.drop and rest.startswith(unit_prefix)):
            renamed[f"{prefix}.{new[layer]}.{rest}"] = name
    return renamed


def cut_layers(model: nn.Module, drop: Collection[int]) -> nn.Module:
    """Remove layers from ``model`` in place; renumber the others and update the config.

    Raises:
        UserError: as :func:`layer_prefix` and :func:`trimmed_config`.
    """
    stack, config = layer_list(model), trimmed_config(_transformers_config(model), drop)
    install_layers(model, nn.ModuleList(stack[i] for i in Plan(len(stack), tuple(drop)).keep), config)
    return model


@contextmanager
def bypass_layers(model: nn.Module, drop: Collection[int]) -> Generator[None]:
    """Inside the ``with`` block, remove layers as :func:`cut_layers` does, KV cache included.

    Layer numbers inside count the remaining layers, and bypasses can be nested. Raises as :func:`cut_layers`.
    """
    stack, config = layer_list(model), trimmed_config(_transformers_config(model), drop)
    before = copy.copy(text_config(_transformers_config(model)))
    install_layers(model, BypassedLayers(stack, Plan(len(stack), tuple(drop)).keep), config)
    try:
        yield
    finally:
        install_layers(model, stack, before)


def install_layers(model: nn.Module, stack: nn.ModuleList, config: PreTrainedConfig) -> None:
    """Make ``stack`` the layer list, number it from 0, and update the text config that all modules share, in place."""
    owner, _, name = layer_prefix(model).rpartition(".")
    setattr(model.get_submodule(owner), name, stack)
    vars(text_config(_transformers_config(model))).update(vars(text_config(config)))
    for number, layer in enumerate(stack):
        for part in layer.modules():
            vars(part).update({key: number for key in LAYER_INDEX_KEYS if key in vars(part)})


def trimmed_config(config: PreTrainedConfig, drop: Collection[int]) -> PreTrainedConfig:
    """Return a copy of ``config`` for the model without the layers ``drop``.

    Raises as :func:`rearranged_config`, or if a layer does not exist.
    """
    plan = Plan(text_config(config).num_hidden_layers, tuple(drop))
    return rearranged_config(config, plan.keep, f"a plan {plan.words}", "drop others")


def rearranged_config(config: PreTrainedConfig, order: Sequence[int], done: str, mend: str) -> PreTrainedConfig:
    """Return a copy of ``config`` for a model of the layers ``order``, with its depth and per-layer lists.

    Args:
        config: of the original model.
        order: for each layer of the new model, its index in the original; ascending, or with repeats.
        done: description of the change, for the error.
        mend: remedy, for the error.

    Raises:
        UserError: as :func:`text_config`, or if a model built from the copy has other layers (a pattern counted from
            layer 0, layers that read each other's cache).
    """
    old, mismatch = text_config(config), ""
    for changes in rearrange_lists(old, old.num_hidden_layers, order):
        new = copy.deepcopy(config)
        text = text_config(new)
        for key, value in changes.items():
            setattr(text, key, value)
        mismatch = _config_mismatch(config, new, order)
        if not mismatch:
            return new
    raise UserError(f"{config.model_type}: no config can describe the model if {done} ({mismatch}); {mend}")


def _config_mismatch(config: PreTrainedConfig, new: PreTrainedConfig, keep: Iterable[int]) -> str:
    """Name a trait in which layers ``keep`` of ``config``'s model differ from those of ``new``, read back from JSON."""
    whole = _layer_traits(meta_model(config))
    try:
        with tempfile.TemporaryDirectory() as folder:  # as JSON, in which an infinity is an object
            new.to_json_file(file := Path(folder) / "config.json")
            built = _layer_traits(meta_model(type(new).from_json_file(file)))
    except Exception as error:  # of any type: the config describes no model
        return " ".join(f"{type(error).__name__}: {error}".split(";")[0].split())[:200]
    pairs = zip([whole[i] for i in (*keep, -1)], built, strict=True)
    return min((name for a, b in pairs for name in sorted({*a, *b}) if a.get(name) != b.get(name)), key=len, default="")


def _layer_traits(model: nn.Module) -> list[dict[str, Any]]:
    """Return each layer's attributes and shapes, known before its weights; last, the shapes outside the layers."""
    traits: list[dict[str, Any]] = [{} for _ in layer_list(model)] + [{}]
    for layer, trait in zip(layer_list(model), traits, strict=False):
        for name, part in layer.named_modules():
            plain = {key: value for key, value in vars(part).items() if isinstance(value, bool | int | float | str)}
            trait |= {f"{name}.{key}".strip("."): plain[key] for key in plain.keys() - IGNORED}
    stem = layer_prefix(model)
    for name, parameter in model.named_parameters():
        layer, rest = split_tensor_name(name, stem) or (-1, name)
        traits[layer][rest] = parameter.shape
    return traits


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model of ``config`` on the meta device: names and shapes, no memory. Raises as :func:`text_config`."""
    text_config(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
