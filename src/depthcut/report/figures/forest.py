"""Transitions of all curves with their intervals: one panel per number."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthcut.report import transition_data
from depthcut.report.figures import lines, style
from depthcut.report.transitions import CurveTransition

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def forest_figure(falls: Sequence[CurveTransition]) -> "Figure | None":
    """Draw midpoints and onsets; a curve without a transition shows the reason instead."""
    seen = {fall.name for fall in falls if fall.found.seen}
    names = [name for name in lines.panel_names([fall.line for fall in falls]) if name in seen]
    if not names:
        return None
    look = style.LineStyles.among([fall.line for fall in falls])
    groups = [[fall for fall in falls if fall.name == name] for name in names]
    drawn, axes = style.panel_grid(len(names), 1, (7, 0.8 + 0.24 * max(map(len, groups))))
    for axis, name, group in zip(axes, names, groups, strict=True):
        group = sorted(group, key=lambda fall: fall.found.midpoint.at if fall.found.midpoint else -1)
        axis.set_title(style.escape_mathtext(name), fontsize=9, loc="left")
        for row, fall in enumerate(group):
            middle, onset, colour = fall.found.midpoint, fall.found.onset, look.of(fall.line)["color"]
            if middle is None or onset is None:
                axis.annotate(
                    transition_data.REASONS[fall.found.why], (0.005, row), fontsize=6.5, va="center", color=style.MUTED
                )
                continue
            axis.plot([onset.low, onset.high], [row - 0.22] * 2, color=colour, linewidth=0.7)
            axis.plot(onset.at, row - 0.22, marker=">", color=colour, markerfacecolor="white", markersize=4)
            axis.plot([middle.low, middle.high], [row] * 2, color=colour, linewidth=1.4)
            axis.plot(middle.at, row, **look.of(fall.line))
        axis.set_yticks(range(len(group)), [look.name(fall.line) for fall in group], fontsize=7)
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.7, len(group) - 0.3)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[-1].set_xlabel(
        "share of layers cut\nwhere half (dot) and a tenth (triangle) of the lead over chance is lost", fontsize=8
    )
    return drawn
