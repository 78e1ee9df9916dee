"""Accuracy and loss against the fraction of layers cut: one panel per number, one line per method and recipe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from depthcut.report import chance, curves
from depthcut.report.curves import Line
from depthcut.report.figures import style
from depthcut.report.transitions import CurveTransition, DenseNumbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_SCALE_RATIO = 6  # largest over smallest loss; the page uses the same


def curve_figure(lines: Sequence[Line], dense: DenseNumbers, falls: Sequence[CurveTransition]) -> "Figure | None":
    """Draw all accuracies and losses; with several models, one row of panels per model."""
    wanted = panel_names(lines)
    models = list(dict.fromkeys(line.keys["model"] for line in lines))
    each = [
        (model, name)
        for model in models
        for name in wanted
        if any(name in line.names for line in model_lines(lines, model))
    ]
    if not each:
        return None
    drawn, axes = style.panel_grid(len(each), len(wanted) if len(models) > 1 else 3, (3.4, 2.7))
    look = style.LineStyles.among(lines)
    for axis, (model, name) in zip(axes, each, strict=True):
        axis.set_title(style.escape_mathtext(name if len(models) == 1 else f"{model}: {name}"), fontsize=9, loc="left")
        draw_panel(axis, model_lines(lines, model), name, look, dense)
        for fall in falls:
            if fall.name == name and fall.line.keys["model"] == model and fall.found.midpoint:
                axis.axvline(fall.found.midpoint.at, color=look.of(fall.line)["color"], linewidth=0.6, alpha=0.6)
    style.shared_legend(drawn, axes)
    return drawn


def panel_names(lines: Sequence[Line]) -> list[str]:
    """Return the numbers that get a panel: accuracies, one kind per task, and losses."""
    names = curves.score_names(sorted({name for line in lines for name in line.names}))
    accuracies = [name for name in names if chance.is_accuracy(name)]
    tasks = dict.fromkeys(name.partition("/")[0] for name in accuracies)
    first = [next(name for name in accuracies if name.startswith(f"{task}/")) for task in tasks]
    return [*first, *(name for name in names if chance.is_loss(name))]


def model_lines(lines: Sequence[Line], model: str) -> list[Line]:
    """Return the lines of a model."""
    return [line for line in lines if line.keys["model"] == model]


def draw_panel(axis: "Axes", lines: Sequence[Line], name: str, look: style.LineStyles, dense: DenseNumbers) -> None:
    """Draw one number of one model."""
    for line in lines:
        if name not in line.names:
            continue
        level = dense.get((line.keys["model"], line.keys["evaluation"]), {}).get(name)
        x, y, error = (np.array(column) for column in (line.fraction, line.names[name].value, line.names[name].stderr))
        if level and not line.healed:
            x, y, error = np.append(0, x), np.append(level[0], y), np.append(level[1], error)
        axis.plot(x, y, label=look.name(line), linewidth=1.4, **look.of(line))
        axis.fill_between(x, y - 1.96 * error, y + 1.96 * error, color=look.of(line)["color"], alpha=0.15, linewidth=0)
        if level:
            axis.axhline(level[0], color=style.MUTED, linewidth=0.7, linestyle=(0, (1, 3)))
    floor = chance.chance_level(name)
    if floor is not None:
        axis.axhline(floor, color=style.MUTED, linewidth=0.7, linestyle=(0, (1, 3)))
        axis.annotate("chance", (0.01, floor), xycoords=("axes fraction", "data"), va="bottom", fontsize=7)
    if chance.is_loss(name):
        set_loss_scale(
            axis, [value for line in lines if name in line.names for value in line.names[name].value if value > 0]
        )
    axis.set_xlabel("share of layers cut", fontsize=8)
    axis.set_ylabel("loss (nats per token)" if chance.is_loss(name) else "accuracy", fontsize=8)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def set_loss_scale(axis: "Axes", losses: Sequence[float]) -> None:
    """Use a logarithmic scale if the losses span so wide a range that a linear scale would hide the small ones."""
    from matplotlib.ticker import LogLocator, NullLocator

    if losses and max(losses) > LOG_SCALE_RATIO * min(losses):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
