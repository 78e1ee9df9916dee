"""Style of figures: colour-blind-safe colours, with redundant dashes and markers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depthcut.report.curves import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#AA4499", "#2F9BD6", "#B8860B", "#332288", "#882255", "#5F6B2D", "#6F6F6F")
DASHES = ("-", "-.", (0, (6, 2)), (0, (6, 1, 1, 1)))
MARKS = ("o", "s", "D", "^", "P", "X", "*", "p")
MUTED = "#57606a"
MARGIN = 0.15  # inches between the legend and the edges of the figure


@dataclass(frozen=True)
class LineStyles:
    """Styles that distinguish lines: selection by colour, recipe by dashes, model by markers."""

    choices: list[str]
    recipes: list[str]
    models: list[str]

    @classmethod
    def among(cls, lines: Sequence[Line]) -> "LineStyles":
        """Return styles for these lines."""
        return cls(
            list(dict.fromkeys(choice_key(line) for line in lines)),
            list(dict.fromkeys(line.keys["recipe"] for line in lines if line.healed)),
            list(dict.fromkeys(line.keys["model"] for line in lines)),
        )

    def of(self, line: Line) -> dict[str, Any]:
        """Return matplotlib's keyword arguments for a line."""
        hue = self.choices.index(choice_key(line)) if len(self.choices) > 1 else self.models.index(line.keys["model"])
        colour = COLOURS[hue % len(COLOURS)]
        dash = DASHES[self.recipes.index(line.keys["recipe"]) % len(DASHES)] if line.healed else ":"
        mark = MARKS[self.models.index(line.keys["model"]) % len(MARKS)]
        face = colour if line.healed else "white"
        return {"color": colour, "linestyle": dash, "marker": mark, "markerfacecolor": face, "markersize": 4.5}

    def name(self, line: Line) -> str:
        """Return a line's legend text."""
        return escape_mathtext(f"{line.keys['model']}: {line.label}" if len(self.models) > 1 else line.label)


def choice_key(line: Line) -> str:
    """Return metric, pruner, replacement and unit."""
    return " ".join(line.keys[key] for key in ("metric", "prune", "replace", "unit"))


def escape_mathtext(text: str) -> str:
    """Escape a text for matplotlib, where ``$`` would begin a formula."""
    return text.replace("$", r"\$")


def panel_grid(count: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """Return a figure of ``count`` panels in rows of ``columns``, each of ``size`` inches."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    return figure, axes


def shared_legend(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """Add one legend below all panels, each name once, in as many columns as fit; widen a figure too narrow for one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    if not found:
        return
    canvas = FigureCanvasAgg(figure)
    width, tall, height = 0.0, 0.0, figure.get_figheight()
    for columns in (3, 2, 1) if len(found) > 3 else (1,):
        drawn = figure.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=7.5, frameon=False
        )
        box = drawn.get_window_extent(canvas.get_renderer())
        width, tall = (size / figure.dpi for size in (box.width, box.height))
        if width <= figure.get_figwidth() - 2 * MARGIN or columns == 1:
            break
        drawn.remove()
    figure.set_size_inches(max(figure.get_figwidth(), width + 2 * MARGIN), height + tall)
