"""Plain replacement layers: tensors of the dense model's layers, read in float32 and inserted into a pruned model."""

import copy
import json
from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from depthcut.cut.plan import Plan
from depthcut.cut.spans import layer_spans
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import quantisation
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery.filling import Filling

# Config keys that describe how the model was loaded.
LOAD_KEYS = ("dtype", "_attn_implementation_internal")


def build_layer(empty: nn.Module, tensors: dict[str, Tensor], load_config: LoadConfig, like: nn.Module) -> nn.Module:
    """Build a frozen layer from ``tensors``, in eval mode.

    Args:
        empty: the layer, on the meta device.
        tensors: all its parameters.
        load_config: quantisation, dtype and device.
        like: a layer of the same model, for buffers that no file holds.
    """
    layer = copy.deepcopy(empty)
    if load_config.quantise != "none":
        quantisation.insert_quantised_linears(layer, load_config.quantise, load_config.dtype)

    def parameter(name: str, bare: nn.Parameter) -> nn.Parameter:
        return quantisation.materialise_parameter(bare, tensors[name], load_config.dtype, load_config.device)

    return quantisation.fill_layer(layer, parameter, dict(like.named_buffers()))


def replace_weights(model: nn.Module, filling: Filling, plan: Plan, load_config: LoadConfig) -> None:
    """Replace weights of kept layers by those of ``filling``."""
    stack = decoder_layers.layer_list(model)
    empty = decoder_layers.layer_list(decoder_layers.meta_model(filling_config(filling)))
    for number, tensors in filling.by_layer().items():
        if load_config.quantise != "none":
            quantisation.insert_quantised_linears(empty[number], load_config.quantise, load_config.dtype)
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            fresh = quantisation.materialise_parameter(
                empty[number].get_parameter(name), tensor, load_config.dtype, load_config.device
            )
            stack[plan.keep.index(number)].get_submodule(owner).register_parameter(leaf, fresh)


def insert_layers(model: nn.Module, filling: Filling, plan: Plan, load_config: LoadConfig) -> None:
    """Insert the layers of ``filling``, renumber the others and update the config."""
    whole = decoder_layers.meta_model(filling_config(filling))
    layers = dict(zip(plan.keep, decoder_layers.layer_list(model), strict=True))
    like = layers[plan.keep[0]]
    for number, tensors in filling.by_layer().items():
        layers[number] = build_layer(decoder_layers.layer_list(whole)[number], tensors, load_config, like)
    gone = [number for number in plan.drop if number not in layers]
    stack = nn.ModuleList(layers[number] for number in sorted(layers))
    install_layers_like(model, stack, decoder_layers.meta_model(decoder_layers.trimmed_config(whole.config, gone)))


def install_layers_like(model: nn.Module, stack: nn.ModuleList, like: PreTrainedModel) -> None:
    """Make ``stack`` the layers of ``model``, and the rest of the decoder as in ``like``, which is on the meta device.

    A model that was built without, for example, sliding-window layers has no positions and no mask for them.
    """
    text, other = (decoder_layers.text_config(each.config) for each in (as_pretrained(model), like))
    kinds = [set(getattr(each, "layer_types", None) or ()) for each in (text, other)]
    loaded = {key: vars(text)[key] for key in LOAD_KEYS if key in vars(text)}
    decoder_layers.install_layers(model, stack, like.config)
    vars(text).update(loaded)
    if kinds[1] <= kinds[0]:
        return
    decoder = decoder_layers.decoder_stack(model)
    plain = {
        key: value
        for key, value in vars(decoder_layers.decoder_stack(like)).items()
        if isinstance(value, bool | int | float | str)
    }
    vars(decoder).update({key: value for key, value in plain.items() if key != "training"})
    for name, part in list(decoder.named_children()):
        if list(part.buffers()) and not list(part.parameters()):  # positions, computed from the config
            setattr(decoder, name, cast("Any", type(part))(text, next(part.buffers()).device))


def as_pretrained(model: nn.Module) -> PreTrainedModel:
    """Return the model, checked to be one of transformers."""
    assert isinstance(model, PreTrainedModel)
    return model


def dense_config_entry(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the config of the model with all its layers, dense or extended, as an entry for ``Filling.options``."""
    return {"dense": json.loads(config.to_json_string(use_diff=False))}


def filling_config(filling: Filling) -> PreTrainedConfig:
    """Return the config of the model with all its layers, as stored in the filling."""
    entry = dict(filling.options["dense"])
    return AutoConfig.for_model(entry.pop("model_type"), **entry)


def gap_spans(plan: Plan) -> list[tuple[int, int]]:
    """Return the gaps of a plan, as half-open spans of the dense model's layers."""
    return layer_spans(plan.drop)
