"""Overlap of dropped layers between selection methods: one matrix per model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthcut.report.figures import style
from depthcut.report.layers import Agreement

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def agreement_figure(found: Sequence[Agreement]) -> "Figure | None":
    """Draw the overlaps, and below each the overlap expected by chance."""
    if not found:
        return None
    most = max(len(each.choosers) for each in found)
    drawn, axes = style.panel_grid(len(found), 2, (2 + 0.55 * most, 1.6 + 0.45 * most))
    for axis, each in zip(axes, found, strict=True):
        axis.imshow(each.overlap, cmap="Blues", vmin=0, vmax=1)
        places = range(len(each.choosers))
        names = [style.escape_mathtext(name) for name in each.choosers]
        axis.set_xticks(places, names, rotation=40, ha="right", fontsize=7)
        axis.set_yticks(places, names, fontsize=7)
        axis.set_title(
            style.escape_mathtext(f"{each.model}: share of dropped layers in common (by chance)"),
            fontsize=8,
            loc="left",
        )
        for i in places:
            for j in places:
                if each.sizes[i, j]:
                    value = each.overlap[i, j]
                    text = f"{value:.2f}" + (f"\n({each.luck[i, j]:.2f})" if i != j else "")
                    colour = "white" if value > 0.6 else "black"
                    axis.text(j, i, text, ha="center", va="center", fontsize=6, color=colour)
    return drawn
