"""Selects the groups that stay by importance: in each layer separately, as published, or across all layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from depthcut.model.surgery.width.widths import GROUP_KINDS, GroupKey

Selection = Literal["uniform", "global"]


def select_groups(
    worth: Mapping[GroupKey, Tensor], share: float, selection: Selection
) -> dict[GroupKey, tuple[int, ...]]:
    """Return the groups that stay when the least important ``share`` of them is removed; one stays at each place.

    The number to remove is rounded to the nearest integer, halves down. Of equals, the first are removed.

    Args:
        worth: importance of the groups at each place, G; heads and channels are never compared.
        share: in [0, 1).
        selection: ``uniform``: the share of each place's groups; ``global``: of each kind's groups in all layers
            together.
    """
    if selection == "uniform":
        return {place: select_in_layer(worth_G, share) for place, worth_G in worth.items()}
    found: dict[GroupKey, tuple[int, ...]] = {}
    for kind in GROUP_KINDS:
        places = [place for place in worth if place[1] == kind]
        found |= zip(places, select_across_layers([worth[place] for place in places], share), strict=True)
    return found


def select_in_layer(worth_G: Tensor, share: float) -> tuple[int, ...]:
    """Return the groups of one layer that stay."""
    gone = min(round_half_down(share * len(worth_G)), len(worth_G) - 1)
    return tuple(sorted(torch.argsort(worth_G, stable=True)[gone:].tolist()))


def select_across_layers(worth: Sequence[Tensor], share: float) -> list[tuple[int, ...]]:
    """Return the groups of each layer that stay when the least important of all layers are removed."""
    stay = [set(range(len(each))) for each in worth]
    owners = [(place, group) for place, each in enumerate(worth) for group in range(len(each))]
    left = round_half_down(share * len(owners))
    for at in torch.argsort(torch.cat(list(worth)), stable=True).tolist() if worth else []:
        place, group = owners[at]
        if left and len(stay[place]) > 1:
            stay[place].remove(group)
            left -= 1
    return [tuple(sorted(each)) for each in stay]


def round_half_down(number: float) -> int:
    """Round to the nearest integer, halves down: half of three heads is one. Floating-point 0.3 x 10 counts as 3."""
    return math.ceil(round(number, 6) - 0.5)
