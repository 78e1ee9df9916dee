"""Which groups stay, given what they are worth: so many in each layer, as published, or in all layers together."""

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
    """The groups that stay where the least important ``share`` of them go; one stays at each place.

    The number that goes is rounded to the nearest whole one, halves down. Of equals the first go.

    Args:
        worth: what the groups at each place are worth, G; heads and channels are never compared.
        share: in [0, 1).
        selection: ``uniform``: the share of each place's groups; ``global``: of a kind's in all layers together.
    """
    if selection == "uniform":
        return {place: select_in_layer(worth_G, share) for place, worth_G in worth.items()}
    found: dict[GroupKey, tuple[int, ...]] = {}
    for kind in GROUP_KINDS:
        places = [place for place in worth if place[1] == kind]
        found |= zip(places, select_across_layers([worth[place] for place in places], share), strict=True)
    return found


def select_in_layer(worth_G: Tensor, share: float) -> tuple[int, ...]:
    """The groups of one layer that stay."""
    gone = min(round_half_down(share * len(worth_G)), len(worth_G) - 1)
    return tuple(sorted(torch.argsort(worth_G, stable=True)[gone:].tolist()))


def select_across_layers(worth: Sequence[Tensor], share: float) -> list[tuple[int, ...]]:
    """The groups of each layer that stay, the least of all layers gone."""
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
    """The nearest whole number, halves down: of three heads half is one. What float makes of 0.3 x 10 counts as 3."""
    return math.ceil(round(number, 6) - 0.5)
