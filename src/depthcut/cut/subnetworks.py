"""Sub-networks of one model: the units that each lacks and the adapters that are active after its first gap."""

from collections.abc import Sequence
from typing import NamedTuple

from depthcut.cut.plan import Plan, Unit


class Subnetwork(NamedTuple):
    """A sub-network, or its prefix up to a given layer.

    Attributes:
        drop: the missing units, sorted.
        unit: layers, or their attentions or MLPs.
        adapter: name of the adapters that are active from the first missing unit on; empty if none are.
    """

    drop: tuple[int, ...]
    unit: Unit = "layer"
    adapter: str = ""

    def before(self, edge: int) -> "Subnetwork":
        """Return the prefix before layer ``edge``, which is the dense model's if it lacks no unit."""
        drop = tuple(layer for layer in self.drop if layer < edge)
        return Subnetwork(drop, self.unit, self.adapter) if drop else FULL


FULL = Subnetwork(())
"""The dense model."""


def subnetwork_from_plan(plan: Plan, adapter: str = "") -> Subnetwork:
    """Return the sub-network that ``plan`` leaves, healed by the adapters of this name."""
    return Subnetwork(plan.drop, plan.unit, adapter).before(plan.depth)


def subnetworks_without(drops: Sequence[Sequence[int]], unit: Unit) -> list[Subnetwork]:
    """Return the sub-network without each of these sets of units."""
    return [Subnetwork(tuple(sorted(drop)), unit) if drop else FULL for drop in drops]
