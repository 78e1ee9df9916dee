"""Tables of records: one record for the terminal, a study for the terminal or as CSV."""

import csv
import importlib
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from depthcut.report import cells
from depthcut.runtime import store

CUT_STAGES = ("dense", "pruned", "healed")
STAGES = (*CUT_STAGES, "control")
METHODS = ("metric", "prune", "replace", "heal")
CUT_COLUMNS = ("model", "frac", "keeps", "metric", "prune", "replace")
STAGE_COLUMNS = {
    "dense": ("model",),
    "pruned": CUT_COLUMNS,
    "healed": (*CUT_COLUMNS, "heal", "seed"),
    "control": ("model", "heal", "seed"),
}


def record_table(record: dict[str, Any]) -> Table:
    """Return a table of one record: one row per number, one column per stage, standard errors next to the numbers."""
    plan = record["plan"]
    title = f"{model_name(record)}: {plan['words']} ({record['fraction']:.0%})"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("", no_wrap=True)
    stages = [stage for stage in STAGES if any(key.startswith(f"{stage}/") for key in record)]
    for stage in stages:
        table.add_column(stage, justify="right")
    for name in measure_names(record):
        table.add_row(Text(titled(record, name)), *(format_cell(record, f"{stage}/{name}") for stage in stages))
    return table


def study_table(rows: Iterable[dict[str, Any]]) -> Table:
    """Return a table of a study: one row per dense model, then one per point and stage; the title holds common values.

    Only losses and accuracies are shown; the CSV has all numbers. The last stage of a point shows the start of its
    digest.
    """
    rows = sorted(rows, key=lambda row: (model_name(row), row["fraction"], *describe_record(row)[3:]))
    names = [
        name
        for name in dict.fromkeys(n for row in rows for n in measure_names(row))
        if name.endswith(("/loss", "/acc"))
    ]
    heads = ("model", "frac", "keeps", *METHODS, "seed")
    words = [describe_record(row) for row in rows]
    seen = [list(dict.fromkeys(word[at] for word in words)) for at in range(len(heads))]
    varying = [at for at, values in enumerate(seen) if len(values) > 1]
    same = [f"{head} {values[0]}" for head, values in zip(heads, seen, strict=True) if len(values) == 1 and values[0]]
    table = Table(title=Text(", ".join(same)), title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for head in ("point", *(heads[at] for at in varying), "stage"):
        table.add_column(head, no_wrap=True)
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True)
    lines: dict[tuple[str, ...], list[str]] = {}
    for row, word in zip(rows, words, strict=True):
        measured = {stage: [format_cell(row, f"{stage}/{name}") for name in names] for stage in STAGES}
        stages = [stage for stage in STAGES if any(measured[stage])]
        for stage in stages:
            line = (*(word[at] if heads[at] in STAGE_COLUMNS[stage] else "" for at in varying), stage, *measured[stage])
            lines.setdefault(line, []).extend([row["digest"][:8]] if stage == stages[-1] else [])
    for line, points in lines.items():
        for point in points or [""]:
            table.add_row(*map(Text, (point, *line)))
    return table


def describe_record(record: dict[str, Any]) -> list[str]:
    """Return the description of a record: model, fraction, layers kept, methods, seed."""
    plan = record["plan"]
    dropped = sum(stop - start for start, stop in plan["drop"])
    words = {group: method_name(record, group) for group in METHODS}
    if not reads_scores(record):
        words["metric"] = ""
    seed = "" if words["heal"] == "none" else str(record["config"]["seed"])
    kept = f"{plan['depth'] - dropped}/{plan['depth']}"
    return [model_name(record), f"{record['fraction']:.3f}", kept, *words.values(), seed]


def healing_findings(record: dict[str, Any]) -> list[str]:
    """Return the effects of healing in sentences; a gain must exceed two standard errors of the difference."""
    said: list[str] = []
    loss = [record.get(f"{stage}/validation/loss") for stage in CUT_STAGES]
    if all(value is not None for value in loss):
        dense, pruned, healed = (float(value or 0) for value in loss)
        opened = pruned - dense
        if opened > 2 * math.hypot(*(record.get(f"{stage}/validation/loss_stderr", 0) for stage in CUT_STAGES[:2])):
            said.append(closed(dense, pruned, healed) + (" (in-domain text)" if in_domain(record) else ""))
    if "control/validation/loss" in record and "healed/validation/loss" in record:
        control, healed = (record[f"{stage}/validation/loss"] for stage in ("control", "healed"))
        said.append(f"the dense model with the same healing: {control:.3f}; healed minus that {healed - control:+.3f}")
    for name in measure_names(record):
        keys = [f"{stage}/{name}" for stage in ("pruned", "healed")]
        if name.endswith("/acc") and all(f"{key}_stderr" in record for key in keys):
            gain = record[keys[1]] - record[keys[0]]
            stderr = math.hypot(*(record[f"{key}_stderr"] for key in keys))
            verdict = "" if abs(gain) > 2 * stderr else ": no difference beyond two standard errors"
            said.append(f"{name}: healed minus pruned {gain:+.3f} ± {stderr:.3f}{verdict}")
    return said


def closed(dense: float, pruned: float, healed: float) -> str:
    """Return in words how much of the loss increase healing recovered."""
    change = f"{pruned:.3f} to {healed:.3f}"
    if healed < dense:
        return f"healing closed the whole loss gap: {change}, below the dense model's {dense:.3f}"
    if healed > pruned:
        return f"healing raised the loss: {change}"
    return f"healing closed {(pruned - healed) / (pruned - dense):.0%} of the loss gap: {change}"


def in_domain(record: dict[str, Any]) -> bool:
    """Return whether healing and the loss read the same kind of text."""
    data: Any = record["config"].get("data") or {}
    kinds = [
        {key: (data.get(part) or {}).get(key) for key in ("_target_", "paths", "dataset", "config")}
        for part in ("train", "validation")
    ]
    return kinds[0] == kinds[1]


def measure_names(record: dict[str, Any]) -> list[str]:
    """Return the names of the numbers of any stage, without standard errors, counts of items and sizes."""
    found = (key.partition("/")[2] for key in record if key.startswith(tuple(f"{stage}/" for stage in STAGES)))
    kept = (name for name in found if not is_note(name) and not name.startswith("size/"))
    return list(dict.fromkeys(name.removesuffix("_finite") for name in kept))


def is_note(name: str) -> bool:
    """Return whether a number describes another one: a standard error, a count of items."""
    return name.endswith(("_stderr", "/items", "/tokens"))


def titled(record: dict[str, Any], name: str) -> str:
    """Return a number's name with its sample size if known: ``capitals/acc (100 items)``."""
    subject = name.rpartition("/")[0]
    for unit in ("tokens", "items"):
        counts = {record[key] for stage in STAGES if (key := f"{stage}/{subject}/{unit}") in record}
        if counts:
            return f"{name} ({' or '.join(f'{count:,.0f}' for count in sorted(counts))} {unit})"
    return name


def format_cell(record: dict[str, Any], key: str) -> str:
    """Return a number with its standard error; empty if it was not measured."""
    if record.get(f"{key}_finite") == 0:
        return "not finite"
    if key not in record:
        return ""
    stderr = record.get(f"{key}_stderr")
    form = ",.0f" if abs(record[key]) >= 1e4 else ".3f"
    return f"{record[key]:{form}}" + (f" ± {stderr:{form}}" if stderr is not None else "")


def model_name(record: dict[str, Any]) -> str:
    """Return the model's name on the command line."""
    model = record["config"]["model"]
    return str(model.get("repo") or model.get("path") or method_name(record, "model")).rsplit("/", 1)[-1]


def method_name(record: dict[str, Any], group: str) -> str:
    """Return the method name of a group: the module of its class, which is the name of its yaml."""
    return record["config"][group]["_target_"].split(".")[-2]


def reads_scores(record: dict[str, Any]) -> bool:
    """Return whether a metric chose the layers."""
    return chooses_by_scores(record["config"]["prune"]["_target_"])


@cache
def chooses_by_scores(target: str) -> bool:
    """Return whether a pruner uses a metric, according to its class; True if the class no longer exists."""
    if not re.fullmatch(r"depthcut\.prune\.\w+\.\w+", target):
        return True
    module, _, name = target.rpartition(".")
    try:
        return bool(getattr(importlib.import_module(module), name).reads_scores)
    except (ImportError, AttributeError):
        return True


def write_study_csv(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a study as CSV: one line per point, all flat numbers as columns; a missing number is an empty cell."""
    rows = list(rows)
    numbers = sorted({key for row in rows for key in row if "/" in key})
    heads = ["digest", "model", "fraction", "keeps", *METHODS, "seed"]
    with (
        store.atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=cells.ERRORS) as file,
    ):
        writer = csv.writer(file)
        writer.writerow(map(cells.escape_formula, [*heads, *numbers]))
        for row in rows:
            words = [row["digest"], *describe_record(row)[:-1], row["config"]["seed"]]
            writer.writerow([*map(cells.escape_formula, words), *(row.get(key, "") for key in numbers)])
