"""Converts ``heal.frac`` to ``heal.ratio``: the width to remove for as many parameters as a depth cut leaves."""

import bisect
import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from depthcut.cut.plan import Plan
from depthcut.heal.width.recipe import WidthRecipe
from depthcut.heal.width.selection import round_half_down
from depthcut.model.decoder import layers, sublayers
from depthcut.model.surgery import sizes
from depthcut.model.surgery.width import groups
from depthcut.model.surgery.width.groups import WidthGroups
from depthcut.model.surgery.width.widths import GROUP_KINDS, GroupKind
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from depthcut.heal import Workspace

RATIO_STEPS = 10_000  # number of ratios to try, in [0, 1)
MODULE_KINDS: dict[str, tuple[GroupKind, ...]] = {"all": GROUP_KINDS, "attention": ("heads",), "ffn": ("channels",)}
log = logging.getLogger("depthcut")


def check_narrowable(asked: WidthRecipe, workspace: "Workspace") -> None:
    """Check that the model can be narrowed as asked, whichever layers are cut from it.

    Raises:
        UserError: if it cannot.
    """
    n = workspace.dense.depth
    model = pruned_skeleton(workspace, Plan(n, tuple(range(n - workspace.layers_cut, n))))
    if not list(group_pools(asked, layers.layer_list(model))):
        raise UserError(
            f"heal=loraprune: heal.modules={asked.modules} adapts nothing that can be narrowed; use heal.modules=all"
        )
    if asked.frac is not None:
        matching_ratio(asked, model)


def resolve_ratio(asked: WidthRecipe, plan: Plan, workspace: "Workspace") -> WidthRecipe:
    """Return the recipe with the lowest ratio that leaves no more parameters than cutting ``frac`` of the layers.

    If groups at different places differ in size, ``global`` selection meets it approximately, because the number
    depends on the groups that go.

    Raises:
        UserError: if that many parameters cannot be removed.
    """
    if asked.frac is None:
        return asked
    ratio, about, wanted = matching_ratio(asked, pruned_skeleton(workspace, plan))
    log.info("width: heal.ratio=%g keeps %.0f parameters, the depth cut %.0f", ratio, about, wanted)
    return dataclasses.replace(asked, ratio=ratio)


def matching_ratio(asked: WidthRecipe, model: nn.Module) -> tuple[float, float, float]:
    """Return the ratio for ``frac``, the number of parameters that it leaves, and the number that the cut would leave.

    Raises:
        UserError: if that many parameters cannot be removed.
    """
    assert asked.frac is not None
    stack, whole = layers.layer_list(model), count_parameters(model)
    cut = math.floor(asked.frac * len(stack) + 0.5)
    wanted = whole - cut * count_parameters(stack) / len(stack)
    parts = list(group_pools(asked, stack))
    at = bisect.bisect_left(
        range(RATIO_STEPS), True, key=lambda step: whole - removed_parameters(parts, step / RATIO_STEPS) <= wanted
    )
    if at == RATIO_STEPS:
        least = whole - removed_parameters(parts, 1.0)
        raise UserError(
            f"heal.frac={asked.frac:g}: without {cut} of {len(stack)} layers {wanted:.0f} parameters remain, but at "
            f"least {least:.0f} remain at the smallest width; lower it, heal.keep_first or heal.keep_last"
        )
    return at / RATIO_STEPS, whole - removed_parameters(parts, at / RATIO_STEPS), wanted


def pruned_skeleton(workspace: "Workspace", plan: Plan) -> "PreTrainedModel":
    """Return the model that ``plan`` leaves, without its weights."""
    halved = plan.unit != "layer"
    config = workspace.dense.config if halved else layers.trimmed_config(workspace.dense.config, plan.drop)
    model = sizes.typed_meta_model(config, workspace.dense.dtype)
    if halved:
        sublayers.remove_sublayers(model, plan)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; tied ones count once."""
    return sum(weight.numel() for weight in model.parameters())


def group_pools(asked: WidthRecipe, stack: nn.ModuleList) -> Iterator[list[tuple[int, int]]]:
    """Yield the pools that groups are selected from: for each place, the number of groups and their parameters each."""
    found: dict[Any, list[tuple[int, int]]] = {}
    for number in asked.free(len(stack)):
        for kind, each in groups.layer_groups(stack[number]).items():
            if kind in MODULE_KINDS[asked.modules]:
                place = (number, kind) if asked.selection == "uniform" else kind
                found.setdefault(place, []).append((each.count, group_parameters(stack[number], each)))
    yield from found.values()


def group_parameters(layer: nn.Module, each: WidthGroups) -> int:
    """Return the number of parameters in a group: its rows with their biases, and its columns in the output matrix."""
    total = 0
    for linear, axis in each.linears(layer):
        total += linear.get_parameter("weight").numel()
        bias = dict(linear.named_parameters()).get("bias")
        total += bias.numel() if bias is not None and axis == 0 else 0
    return total // each.count


def removed_parameters(parts: list[list[tuple[int, int]]], ratio: float) -> float:
    """Return the number of parameters that a ratio removes; one group stays at each place."""
    total = 0.0
    for part in parts:
        count = sum(groups for groups, _ in part)
        size = sum(groups * size for groups, size in part) / count
        total += size * min(round_half_down(ratio * count), count - len(part))
    return total
