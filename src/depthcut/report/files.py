"""What a report leaves on the disk: the page, or figures for a paper, or tables."""

from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.report import cells
from depthcut.report.study import Studies
from depthcut.runtime import store
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

FIGURES = "figures"
FILE_NAMES = {"html": "report.html", "csv": "report.csv", "md": "report.md"}


def write_output(found: Studies, kind: str, output: Path | None, title: str, home: Path) -> list[Path]:
    """Write what is asked for; give the paths.

    Args:
        found: the studies.
        kind: ``html``, ``csv`` or ``md``: one file. ``png``, ``svg`` or ``pdf``: a folder of figures.
        output: that file or folder; None: ``report.*``, or ``figures``, in ``home``.
        home: the folder of the studies.
        title: of the page.

    Raises:
        UserError: if there is nothing to draw.
    """
    if kind not in FILE_NAMES:
        return write_figures(found, kind, output or home / FIGURES)
    path = output or home / FILE_NAMES[kind]
    if kind == "html":
        from depthcut.report import data, page

        page.write_page(data.page_data(found, title), path)
    elif kind == "csv":
        cells.write_frame_csv(path, number_table(found))
    else:
        text = f"# {cells.escape_markdown(title)}\n\n{found.words}\n\n{cells.markdown_table(transition_table(found))}"
        store.write_text(path, cells.encodable(text))
    return [path]


def write_figures(found: Studies, kind: str, folder: Path) -> list[Path]:
    """Draw every figure that there is something for."""
    from matplotlib import rc_context

    from depthcut.report import figures

    made = figures.draw_figures(found.points)
    if not made:
        raise UserError("nothing to draw: no finished record measures a cut")
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    # Text stays text in a PDF, and the same records make the same SVG.
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "depthcut", "font.size": 9}):
        for name, figure in made.items():
            paths.append(folder / f"{name}.{kind}")
            with store.atomic_write(paths[-1]) as temporary:
                figure.savefig(temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return paths


def number_table(found: Studies) -> "pd.DataFrame":
    """The tidy table: a row a number."""
    from depthcut.report.tidy import tidy_table

    return tidy_table(found.records)


def transition_table(found: Studies) -> "pd.DataFrame":
    """A row a curve and number: where it falls, in percent of the layers, or why no fall is told of."""
    import pandas as pd

    from depthcut.report import curves, transition_fit
    from depthcut.report import transitions as report_transitions
    from depthcut.report.tidy import tidy_table

    table = tidy_table(found.records)
    rows = [
        (
            *(fall.line.keys[key] for key in ("model", "metric", "prune", "replace", "recipe")),
            fall.name,
            *(
                cells.format_interval(each)
                for each in (fall.found.midpoint, fall.found.onset, fall.found.width, fall.moved)
            ),
            transition_fit.REASONS[fall.found.why],
        )
        for fall in report_transitions.curve_transitions(curves.curve_lines(table), curves.dense_numbers(table))
    ]
    heads = (
        "model",
        "metric",
        "prune",
        "replace",
        "heal",
        "task",
        "midpoint",
        "onset",
        "width",
        "moved by healing",
        "note",
    )
    return pd.DataFrame(rows, columns=list(heads))
