"""Filling the gaps of a cut: make once, put into a model, take out again, write beside a plain model."""

from typing import Any

from torch import nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery import bridges, inserted, shared
from depthcut.model.surgery.filling import Filling


def insert_filling(model: nn.Module, filling: Filling, plan: Plan, load_config: LoadConfig) -> nn.Module:
    """Put ``fill`` into ``model``, which ``plan`` has cut, in place.

    Args:
        model: has the layers that the plan keeps.
        fill: made for this plan.
        plan: says where the gaps are.
        form: how the model lies in memory; plain layers are quantised as it says.
    """
    if filling.kind == "weights":
        inserted.replace_weights(model, filling, plan, load_config)
    elif filling.kind == "layers":
        inserted.insert_layers(model, filling, plan, load_config)
    elif filling.kind == "bridges":
        bridges.insert_bridges(model, filling, plan, load_config)
    else:
        shared.insert_shared_layers(model, filling, load_config)
    return model


def extract_filling(model: nn.Module, plan: Plan) -> Filling | None:
    """What in ``model`` is no plain layer, as :func:`insert_filling` would put it in; None in a plain model."""
    return bridges.extract_bridges(model, plan) or shared.extract_shared_layers(model)


def remove_filling(model: nn.Module) -> None:
    """Take out of ``model`` what :func:`extract_filling` tells of."""
    bridges.remove_bridges(model)
    shared.remove_shared_layers(model)


def lora_config_kwargs(model: nn.Module) -> dict[str, Any]:
    """What peft's ``LoraConfig`` has to be told of ``model``; nothing for a plain one.

    Adapters go on the linear layers of kept layers; what shared layers have of their own is trained as a whole.
    """
    return shared.shared_lora_kwargs(model)
