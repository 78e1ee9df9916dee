"""Sub-networks of one model: what each lacks, and whose adapters sit above its first gap."""

from collections.abc import Sequence
from typing import NamedTuple

from depthcut.cut.plan import Plan, Unit


class Subnetwork(NamedTuple):
    """A sub-network, or what there is of one up to some layer.

    Attributes:
        drop: the units that are missing, sorted.
        unit: layers, or their attentions or MLPs.
        adapter: the name of the adapters that are on from the first missing unit on; empty: none are.
    """

    drop: tuple[int, ...]
    unit: Unit = "layer"
    adapter: str = ""

    def before(self, edge: int) -> "Subnetwork":
        """What there is of it in front of layer ``edge``: as long as nothing is missing, the dense model."""
        drop = tuple(layer for layer in self.drop if layer < edge)
        return Subnetwork(drop, self.unit, self.adapter) if drop else FULL


FULL = Subnetwork(())
"""The model as it is."""


def subnetwork_from_plan(plan: Plan, adapter: str = "") -> Subnetwork:
    """What ``plan`` leaves, healed by adapters of this name."""
    return Subnetwork(plan.drop, plan.unit, adapter).before(plan.depth)


def subnetworks_without(drops: Sequence[Sequence[int]], unit: Unit) -> list[Subnetwork]:
    """What is left without each of these sets of units."""
    return [Subnetwork(tuple(sorted(drop)), unit) if drop else FULL for drop in drops]
