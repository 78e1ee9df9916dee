"""Output files of a report: the page, figures for a paper, or tables."""

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
    """Write a report and return the paths of its files.

    Args:
        found: the studies.
        kind: ``html``, ``csv`` or ``md``: one file. ``png``, ``svg`` or ``pdf``: a folder of figures.
        output: path of that file or folder; None: ``report.*``, or ``figures``, in ``home``.
        title: title of the page.
        home: folder of the studies.

    Raises:
        UserError: if no figure can be drawn.
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
    """Draw every figure that has data."""
    from matplotlib import rc_context

    from depthcut.report import figures

    made = figures.draw_figures(found.points)
    if not made:
        raise UserError("nothing to draw: no finished record measures a cut")
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    # Text stays text in a PDF, and the same records give the same SVG.
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "depthcut", "font.size": 9}):
        for name, figure in made.items():
            paths.append(folder / f"{name}.{kind}")
            with store.atomic_write(paths[-1]) as temporary:
                figure.savefig(temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return paths


def number_table(found: Studies) -> "pd.DataFrame":
    """Return the tidy table: one row per number."""
    from depthcut.report.tidy import tidy_table

    return tidy_table(found.records)


def transition_table(found: Studies) -> "pd.DataFrame":
    """Return one row per curve and number: its transition in percent of the layers, or why none is reported."""
    import pandas as pd

    from depthcut.report import curves, transition_data
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
            transition_data.REASONS[fall.found.why],
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
