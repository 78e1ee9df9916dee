"""Cells of exported tables: text that a spreadsheet would run, or that is Markdown, stays plain text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.runtime import store

if TYPE_CHECKING:
    import pandas as pd

    from depthcut.report.transition_data import Interval

ERRORS = "backslashreplace"  # for folder names that are not UTF-8
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def escape_formula(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; return other values unchanged."""
    if isinstance(value, str) and (value.startswith(FORMULA_STARTS) or value.lstrip().startswith(FORMULA_STARTS)):
        return f"'{value}"
    return value


def write_frame_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV; a missing value is an empty cell."""
    with store.atomic_write(path) as temporary:
        table.map(escape_formula).rename(columns=escape_formula).to_csv(temporary, index=False, errors=ERRORS)


def markdown_table(table: "pd.DataFrame") -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += [
        "| " + " | ".join(escape_markdown(str(cell)) for cell in row) + " |" for row in table.itertuples(index=False)
    ]
    return "\n".join(lines) + "\n"


def encodable(text: str) -> str:
    """Return a text that can be encoded; bytes of a name that is not UTF-8 become escapes."""
    return text.encode(errors=ERRORS).decode()


def escape_markdown(text: str) -> str:
    """Return a text escaped for Markdown."""
    for mark in ("\\", "|", "<", "*", "_", "`", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def format_interval(found: "Interval | None") -> str:
    """Return an interval such as ``31.0 % (28.5 to 33.5)``; None gives an empty text."""
    if found is None:
        return ""
    return f"{100 * found.at:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
