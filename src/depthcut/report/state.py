"""How far a study is: its points by state, what runs now, and why points failed."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from depthcut.report import study
from depthcut.runtime import documents

SHOWN = 20


def of(found: study.Found) -> list[Table | Text]:
    """Return what to print above the numbers: the counts, then a table of the points that need a look, if any."""
    lines: list[Table | Text] = [Text(found.words)]
    rows = [(folder, "running", progress(folder)) for folder in found.running]
    rows += [(folder, "failed", reason) for folder, reason in found.failures.items()]
    rows += [(folder, "damaged", f"record.json: {why}") for folder, why in found.damaged.items()]
    if rows:
        table = Table(box=box.SIMPLE_HEAD, padding=0)
        for head in ("point", "what", "state", ""):
            table.add_column(head, overflow="fold")
        for folder, state, text in rows[:SHOWN]:
            table.add_row(*map(Text, (str(Path(folder.parent.name, folder.name[:8])), words(folder), state, text)))
        lines.append(table)
    if len(rows) > SHOWN:
        lines.append(Text(f"and {len(rows) - SHOWN} more"))
    return lines


def words(folder: Path) -> str:
    """A point that is not finished, by what its config says of it, e.g. ``pico angular block 0.25 lora seed=0``."""
    config = study.config(folder)
    prune: dict[str, Any] = mapping(config, "prune")
    size = next((f"{key}={prune[key]}" for key in SIZES if prune.get(key) is not None), f"{prune.get('frac', '')}")
    names = [method(config, group) for group in ("model", "metric", "prune")]
    return " ".join(filter(None, (*names, size, method(config, "heal"), f"seed={config.get('seed', '?')}")))


SIZES = ("layers", "parameters", "weight_bytes", "cache_bytes", "drop")


def mapping(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A group of a config; empty where it is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def method(config: dict[str, Any], group: str) -> str:
    """The word of a group; empty where the config names none."""
    target = mapping(config, group).get("_target_")
    return target.split(".")[-2] if isinstance(target, str) and "." in target else ""


def progress(folder: Path) -> str:
    """How far the healing of a point is, in words; empty where it has not begun, or is none."""
    found = steps(folder)
    return f"healing: step {found[0]} of {found[1]}" if found else ""


def steps(folder: Path) -> tuple[int, int] | None:
    """How many steps a point was healed, by the last row of its curve, and how many it will be."""
    total = mapping(study.config(folder), "heal").get("steps")
    try:
        step = documents.text(folder / "heal.csv", documents.LIMIT).splitlines()[-1].partition(",")[0]
    except (OSError, ValueError, IndexError):
        return None
    return (int(step), total) if step.isdecimal() and len(step) < 20 and isinstance(total, int) and total > 0 else None
