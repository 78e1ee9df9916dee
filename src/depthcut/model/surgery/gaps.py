"""Filling of the gaps of a cut: insert a filling into a model, extract it, remove it."""

from typing import Any

from torch import nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery import bridges, inserted, shared
from depthcut.model.surgery.filling import Filling


def insert_filling(model: nn.Module, filling: Filling, plan: Plan, load_config: LoadConfig) -> nn.Module:
    """Insert ``filling`` into ``model``, which ``plan`` has cut, in place.

    Args:
        model: has the layers that the plan keeps.
        filling: made for this plan.
        plan: defines the gaps.
        load_config: quantisation, dtype and device of the model; plain layers are quantised accordingly.
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
    """Return the filling of ``model``, as :func:`insert_filling` takes it; None for a plain model."""
    return bridges.extract_bridges(model, plan) or shared.extract_shared_layers(model)


def remove_filling(model: nn.Module) -> None:
    """Remove from ``model`` all that :func:`extract_filling` returns."""
    bridges.remove_bridges(model)
    shared.remove_shared_layers(model)


def lora_config_kwargs(model: nn.Module) -> dict[str, Any]:
    """Return arguments for peft's ``LoraConfig`` that ``model`` requires; none for a plain model.

    Adapters go on the linear layers of kept layers; the own parts of shared layers are trained in full.
    """
    return shared.shared_lora_kwargs(model)
