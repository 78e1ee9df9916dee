"""Figures for papers, drawn by matplotlib: a pure function each, from what a report's tables say to a figure."""

from typing import TYPE_CHECKING

from depthcut.report.study import Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure


def of(points: "Sequence[Point]") -> "dict[str, Figure]":
    """All figures that these finished points have something for, by name: also what a logger may send elsewhere."""
    from depthcut.report import curves, healing, labels, layers, score_maps, transitions
    from depthcut.report.figures import agreement, blocks, forest, layer_strips, lines, losses, tradeoff
    from depthcut.report.tidy import tidy

    records = [point.record for point in points]
    table = tidy(records)
    drawn, dense = curves.lines(table), curves.dense(table)
    fallen = transitions.of(drawn, dense)
    choices = layers.strips(records)
    names = [label["recipe"] for label in labels.of(records)]
    found = {
        "curves": lines.figure(drawn, dense, fallen),
        "transition": forest.figure(fallen),
        "layers": layer_strips.figure(choices),
        "agreement": agreement.figure(layers.agreements(choices)),
        "blocks": blocks.figure(score_maps.maps(points)),
        "tradeoff": tradeoff.figure(drawn, dense),
        "healing": losses.figure(healing.curves(points, kept=400), names),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
