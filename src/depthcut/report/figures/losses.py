"""Training loss during healing, against tokens and seconds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthcut.report.figures import style
from depthcut.report.healing import HealingCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def healing_loss_figure(curves: Sequence[HealingCurve], recipes: Sequence[str]) -> "Figure | None":
    """Draw one line per run; each recipe has a colour."""
    if not curves:
        return None
    drawn, axes = style.panel_grid(2, 2, (3.8, 2.8))
    there = list(dict.fromkeys(recipes[curve.run] for curve in curves))
    for axis, name in zip(axes, ("tokens", "seconds"), strict=True):
        for curve in curves:
            recipe = recipes[curve.run]
            colour = style.COLOURS[there.index(recipe) % len(style.COLOURS)]
            axis.plot(
                getattr(curve, name),
                curve.loss,
                color=colour,
                linewidth=0.8,
                alpha=0.8,
                label=style.escape_mathtext(recipe),
            )
        axis.set_xlabel(name, fontsize=8)
        axis.set_ylabel("training loss (nats per token)", fontsize=8)
    style.shared_legend(drawn, axes)
    return drawn
