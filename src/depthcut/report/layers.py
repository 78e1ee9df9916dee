"""Dropped layers by selection method and size of the cut, and the agreement between methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthcut.report import labels

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LayerStrip:
    """Dropped layers of one selection method.

    Attributes:
        model: the model.
        chooser: metric and pruner.
        unit: the dropped part of each layer.
        depth: number of layers of the dense model, L.
        rows: for each number of dropped layers, the share of cuts that drop each layer: L numbers.
    """

    model: str
    chooser: str
    unit: str
    depth: int
    rows: dict[int, list[float]]


def layer_strips(records: Sequence[dict[str, Any]]) -> list[LayerStrip]:
    """Return one strip per selection method. Cuts that differ by seed are averaged."""
    cuts: dict[tuple[str, str, str, int], dict[int, set[tuple[int, ...]]]] = {}
    for record, label in zip(records, labels.record_labels(records), strict=True):
        drop, plan = labels.dropped_layers(record), record["plan"]
        chooser = " ".join(filter(None, (label["metric"], label["prune"])))
        key = (label["model"], chooser, plan.get("unit", "layer"), plan["depth"])
        if drop:
            cuts.setdefault(key, {}).setdefault(len(drop), set()).add(drop)
    return [
        LayerStrip(*key, {n: drop_shares(rows[n], key[3]) for n in sorted(rows)}) for key, rows in sorted(cuts.items())
    ]  # fmt: skip


def drop_shares(drops: set[tuple[int, ...]], depth: int) -> list[float]:
    """Return for each layer the share of ``drops`` that contain it."""
    return [sum(layer in drop for drop in drops) / len(drops) for layer in range(depth)]


@dataclass(frozen=True)
class Agreement:
    """Agreement of the selection methods on one model.

    Attributes:
        choosers: their names, C.
        overlap: mean share of dropped layers that two methods have in common, over the sizes that both cut: C x C, NaN
            if they share no size.
        luck: the same for two random choices: the mean of n / L over these sizes.
        sizes: number of sizes compared, C x C.
    """

    model: str
    unit: str
    choosers: list[str]
    overlap: Array
    luck: Array
    sizes: NDArray[np.int64]


def chooser_agreements(found: Sequence[LayerStrip]) -> list[Agreement]:
    """Compare all selection methods tried on a model; a model with only one is left out."""
    groups: dict[tuple[str, str, int], list[LayerStrip]] = {}
    for strip in found:
        groups.setdefault((strip.model, strip.unit, strip.depth), []).append(strip)
    return [compare_strips(group) for group in groups.values() if len(group) > 1]


def compare_strips(group: list[LayerStrip]) -> Agreement:
    """Compare the strips of one model."""
    size = len(group)
    overlap, luck = np.full((size, size), np.nan), np.full((size, size), np.nan)
    sizes = np.zeros((size, size), dtype=np.int64)
    for (i, one), (j, two) in combinations(enumerate(group), 2):
        both = sorted(one.rows.keys() & two.rows.keys())
        sizes[i, j] = sizes[j, i] = len(both)
        if both:
            common = [np.dot(one.rows[n], two.rows[n]) / n for n in both]
            overlap[i, j] = overlap[j, i] = np.mean(common)
            luck[i, j] = luck[j, i] = np.mean([n / one.depth for n in both])
    for i, strip in enumerate(group):
        overlap[i, i], sizes[i, i] = 1.0, len(strip.rows)
        luck[i, i] = np.mean([n / strip.depth for n in strip.rows])
    return Agreement(group[0].model, group[0].unit, [strip.chooser for strip in group], overlap, luck, sizes)
