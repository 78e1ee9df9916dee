"""Filling the gaps of a cut: make once, put into a model, take out again, write beside a plain model."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint.loading import Form
from depthcut.model.surgery import bridges, inserted, shared
from depthcut.model.surgery.filling import Fill
from depthcut.runtime import store
from depthcut.study import digests

if TYPE_CHECKING:
    from depthcut.study.lab import Lab


def kept(lab: "Lab", plan: Plan, make: Callable[[], Fill]) -> Fill:
    """What fills this cut, made once and kept by what it was made from."""

    def write(folder: Path) -> None:
        with lab.timed("replace"):
            make().write(folder)

    return Fill.read(store.kept(lab.cache / "replacements" / digests.pruned(lab, plan), write))


def form(lab: "Lab") -> Form:
    """How the run's models lie in memory."""
    model = lab.experiment.model
    return Form(model.quantise, getattr(torch, model.dtype), lab.device)


def put(model: nn.Module, fill: Fill, plan: Plan, form: Form) -> nn.Module:
    """Put ``fill`` into ``model``, which ``plan`` has cut, in place.

    Args:
        model: has the layers that the plan keeps.
        fill: made for this plan.
        plan: says where the gaps are.
        form: how the model lies in memory; plain layers are quantised as it says.
    """
    if fill.kind == "weights":
        inserted.refill(model, fill, plan, form)
    elif fill.kind == "layers":
        inserted.insert(model, fill, plan, form)
    elif fill.kind == "bridges":
        bridges.put(model, fill, plan, form)
    else:
        shared.put(model, fill, form)
    return model


def taken(model: nn.Module, plan: Plan) -> Fill | None:
    """What in ``model`` is no plain layer, as :func:`put` would put it in; None in a plain model."""
    return bridges.taken(model, plan) or shared.taken(model)


def off(model: nn.Module) -> None:
    """Take out of ``model`` what :func:`taken` tells of."""
    bridges.off(model)
    shared.off(model)


def adapting(model: nn.Module) -> dict[str, Any]:
    """What peft's ``LoraConfig`` has to be told of ``model``; nothing for a plain one.

    Adapters go on the linear layers of kept layers; what shared layers have of their own is trained as a whole.
    """
    return shared.adapting(model)
