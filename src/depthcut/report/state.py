"""Progress of a study: its points by state, the running points, and the reasons of failures."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from depthcut.report import study
from depthcut.runtime import documents

MAX_ROWS = 20


def state_lines(found: study.Studies) -> list[Table | Text]:
    """Return the lines above the numbers: the counts, then a table of running, failed and damaged points, if any."""
    lines: list[Table | Text] = [Text(found.words)]
    rows = [(folder, "running", healing_progress(folder)) for folder in found.running]
    rows += [(folder, "failed", reason) for folder, reason in found.failures.items()]
    rows += [(folder, "damaged", f"record.json: {why}") for folder, why in found.damaged.items()]
    if rows:
        table = Table(box=box.SIMPLE_HEAD, padding=0)
        for head in ("point", "what", "state", ""):
            table.add_column(head, overflow="fold")
        for folder, state, text in rows[:MAX_ROWS]:
            table.add_row(
                *map(Text, (str(Path(folder.parent.name, folder.name[:8])), describe_point(folder), state, text))
            )
        lines.append(table)
    if len(rows) > MAX_ROWS:
        lines.append(Text(f"and {len(rows) - MAX_ROWS} more"))
    return lines


def describe_point(folder: Path) -> str:
    """Describe an unfinished point by its config, such as ``pico angular block 0.25 lora seed=0``."""
    config = study.point_config(folder)
    prune: dict[str, Any] = config_group(config, "prune")
    size = next((f"{key}={prune[key]}" for key in SIZES if prune.get(key) is not None), f"{prune.get('frac', '')}")
    names = [method_word(config, group) for group in ("model", "metric", "prune")]
    return " ".join(filter(None, (*names, size, method_word(config, "heal"), f"seed={config.get('seed', '?')}")))


SIZES = ("layers", "parameters", "weight_bytes", "cache_bytes", "drop")


def config_group(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a group of a config; empty if it is missing or not a mapping."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def method_word(config: dict[str, Any], group: str) -> str:
    """Return the method name of a group; empty if the config names none."""
    target = config_group(config, group).get("_target_")
    return target.split(".")[-2] if isinstance(target, str) and "." in target else ""


def healing_progress(folder: Path) -> str:
    """Return the progress of a point's healing in words; empty if it has not begun."""
    found = healed_steps(folder)
    return f"healing: step {found[0]} of {found[1]}" if found else ""


def healed_steps(folder: Path) -> tuple[int, int] | None:
    """Return the steps done, by the last row of the healing curve, and the total number of steps."""
    total = config_group(study.point_config(folder), "heal").get("steps")
    try:
        step = documents.read_bounded_text(folder / "heal.csv", documents.LIMIT).splitlines()[-1].partition(",")[0]
    except (OSError, ValueError, IndexError):
        return None
    return (int(step), total) if step.isdecimal() and len(step) < 20 and isinstance(total, int) and total > 0 else None
