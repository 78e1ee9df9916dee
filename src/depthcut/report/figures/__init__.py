"""Figures for papers, drawn by matplotlib: each is a pure function of a report's tables."""

from typing import TYPE_CHECKING

from depthcut.report.study import FinishedPoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure


def draw_figures(points: "Sequence[FinishedPoint]") -> "dict[str, Figure]":
    """Return all figures that these finished points have data for, by name; loggers can upload them."""
    from depthcut.report import curves, healing, labels, layers, score_maps, transitions
    from depthcut.report.figures import agreement, blocks, forest, layer_strips, lines, losses, tradeoff
    from depthcut.report.tidy import tidy_table

    records = [point.record for point in points]
    table = tidy_table(records)
    drawn, dense = curves.curve_lines(table), curves.dense_numbers(table)
    fallen = transitions.curve_transitions(drawn, dense)
    choices = layers.layer_strips(records)
    names = [label["recipe"] for label in labels.record_labels(records)]
    found = {
        "curves": lines.curve_figure(drawn, dense, fallen),
        "transition": forest.forest_figure(fallen),
        "layers": layer_strips.layer_strip_figure(choices),
        "agreement": agreement.agreement_figure(layers.chooser_agreements(choices)),
        "blocks": blocks.block_score_figure(score_maps.load_score_maps(points)),
        "tradeoff": tradeoff.tradeoff_figure(drawn, dense),
        "healing": losses.healing_loss_figure(healing.healing_curves(points, kept=400), names),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
