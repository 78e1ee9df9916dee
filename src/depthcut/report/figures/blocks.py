"""Scores of all blocks, start by size, each size on its own scale (Gromov et al., arXiv:2403.17887, figure 4)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthcut.report.figures import style
from depthcut.report.score_maps import ScoreMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def block_score_figure(maps: Sequence[ScoreMap]) -> "Figure | None":
    """Draw two panels per map: normalised by size, and raw; rings mark the blocks that were cut."""
    if not maps:
        return None
    drawn, axes = style.panel_grid(2 * len(maps), 2, (3.8, 3.0))
    for place, each in enumerate(maps):
        for axis, values, name in zip(
            axes[2 * place :], (each.normalised, each.scores), ("within its size", "raw"), strict=False
        ):
            shown = axis.imshow(
                values, origin="lower", aspect="auto", extent=(-0.5, each.depth - 0.5, 0.5, each.depth + 0.5)
            )
            sizes, starts = list(each.chosen), list(each.chosen.values())
            axis.scatter(starts, sizes, s=16, facecolors="none", edgecolors="white", linewidths=1.2)
            drawn.colorbar(shown, ax=axis).ax.tick_params(labelsize=7)
            axis.set_title(style.escape_mathtext(f"{each.model}, {each.metric}: {name}"), fontsize=8, loc="left")
            axis.set_xlabel("first layer of the block", fontsize=8)
            axis.set_ylabel("layers in the block", fontsize=8)
    return drawn
