"""Dropped layers by selection method: one strip per size of the cut."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthcut.report.figures import style
from depthcut.report.layers import LayerStrip

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_strip_figure(strips: Sequence[LayerStrip]) -> "Figure | None":
    """Draw one panel per selection method; dark means dropped."""
    if not strips:
        return None
    tall = max(len(strip.rows) for strip in strips)
    drawn, axes = style.panel_grid(len(strips), 2, (3.6, 0.9 + 0.13 * tall))
    models = {strip.model for strip in strips}
    for axis, strip in zip(axes, strips, strict=True):
        unit = "" if strip.unit == "layer" else f" ({strip.unit})"
        name = strip.chooser + unit if len(models) == 1 else f"{strip.model}: {strip.chooser}{unit}"
        axis.set_title(style.escape_mathtext(name), fontsize=8, loc="left")
        axis.imshow(list(strip.rows.values()), cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
        step = max(1, len(strip.rows) // 6)
        sizes = list(strip.rows)[::step]
        axis.set_yticks(range(0, len(strip.rows), step), [f"{n / strip.depth:.0%}" for n in sizes], fontsize=7)
        axis.set_xlabel("layer", fontsize=8)
    return drawn
