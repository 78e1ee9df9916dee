"""Trade-off of a cut: a score against memory and against speed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthcut.report.curves import Line
from depthcut.report.figures import lines as panels
from depthcut.report.figures import style
from depthcut.report.transitions import DenseNumbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {
    "size/weight_bytes": ("weights (GB)", 1e-9),
    "speed/tokens_per_second": ("tokens/s", 1.0),
}


def tradeoff_figure(lines: Sequence[Line], dense: DenseNumbers) -> "Figure | None":
    """Draw the first panel number against each of the AXES that was measured."""
    quantities = [name for name in AXES if any(name in line.names for line in lines)]
    wanted = panels.panel_names(lines)[:1]
    if not quantities or not wanted:
        return None
    drawn, axes = style.panel_grid(len(quantities), 2, (3.8, 3.0))
    look = style.LineStyles.among(lines)
    sizes = {(pairing_key(line), n): line.names for line in lines if not line.healed for n in line.dropped}
    for axis, quantity in zip(axes, quantities, strict=True):
        title, scale = AXES[quantity]
        for line in lines:
            own = line.names if quantity in line.names else sizes.get((pairing_key(line), line.dropped[0]), {})
            if quantity in own and wanted[0] in line.names and len(own[quantity].value) == len(line.dropped):
                x = [scale * value for value in own[quantity].value]
                axis.plot(x, line.names[wanted[0]].value, label=look.name(line), linewidth=0.8, **look.of(line))
        for (model, _), level in dense.items():
            if quantity in level and wanted[0] in level:
                axis.plot(scale * level[quantity][0], level[wanted[0]][0], "k*", markersize=10)
                place = (scale * level[quantity][0], level[wanted[0]][0])
                name = style.escape_mathtext(f"dense {model}")
                axis.annotate(name, place, (-6, 4), textcoords="offset points", ha="right", fontsize=7)
        axis.set_xlabel(title, fontsize=8)
        axis.set_ylabel(style.escape_mathtext(wanted[0]), fontsize=8)
    style.shared_legend(drawn, axes)
    return drawn


def pairing_key(line: Line) -> tuple[str, ...]:
    """Return the keys that a healed line shares with the unhealed one."""
    return tuple(value for key, value in line.keys.items() if key not in ("stage", "recipe"))
