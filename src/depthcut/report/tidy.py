"""Records as one tidy table: one row per measured number, with everything that identifies it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from depthcut.report import labels, table

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("dense", "pruned", "healed")
COLUMNS = (
    "run",
    "digest",
    "study",
    "stage",
    *labels.GROUPS,
    "unit",
    "depth",
    "dropped",
    "fraction",
    "cut",
    "seed",
    "name",
    "value",
    "stderr",
    "items",
)
CUT_GROUPS = ("metric", "prune", "replace")


def tidy_table(records: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Return a table with one row per number.

    Columns: ``run`` (index of the record), ``digest``, ``study``, ``stage``; ``model``, ``metric``, ``prune``,
    ``replace``, ``recipe``, ``evaluation`` (names; empty where they do not affect the number: a dense model has no cut,
    an
    unhealed one no recipe); ``unit``, ``depth``, ``dropped`` (layers), ``fraction``, ``cut`` (the dropped layers, as
    text),
    ``seed``; ``name`` (such as ``boolq/acc``), ``value``, ``stderr`` and ``items``, the sample size (the last two are
    NaN
    if unknown).
    """
    import pandas as pd

    rows = [
        row
        for run, (record, label) in enumerate(zip(records, labels.record_labels(records), strict=True))
        for row in record_rows(run, record, label)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def record_rows(run: int, record: dict[str, Any], label: dict[str, str]) -> list[tuple[Any, ...]]:
    """Return the rows of one record."""
    config, plan, drop = record["config"], record["plan"], labels.dropped_layers(record)
    cut = ",".join(f"{start}-{stop - 1}" for start, stop in plan["drop"])
    rows: list[tuple[Any, ...]] = []
    for stage in STAGES:
        named = stage_labels(stage, label)
        sized = ("", plan["depth"], 0, 0.0, "") if stage == "dense" else (
            plan.get("unit", "layer"), plan["depth"], len(drop), len(drop) / plan["depth"], cut
        )  # fmt: skip
        seed = config["seed"] if stage == "healed" else 0
        for key, value in record.items():
            name = key.removeprefix(f"{stage}/")
            if name != key and not table.is_note(name) and not name.endswith("_finite"):
                stderr = record.get(f"{key}_stderr", float("nan"))
                items = record.get(f"{key.rpartition('/')[0]}/items", float("nan"))
                about = (run, record["digest"], record["study"], stage, *named, *sized, seed)
                rows.append((*about, name, float(value), stderr, items))
    return rows


def stage_labels(stage: str, label: dict[str, str]) -> tuple[str, ...]:
    """Return the names that affect a stage."""
    gone = {"dense": (*CUT_GROUPS, "recipe"), "pruned": ("recipe",), "healed": ()}[stage]
    return tuple("" if group in gone else label[group] for group in labels.GROUPS)
