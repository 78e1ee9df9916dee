"""Data of a page as plain JSON: the contents of the figures, and each run; values that runs share are stored once."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from depthcut.report import (
    chance,
    curves,
    healing,
    labels,
    layers,
    live,
    score_maps,
    table,
    transition_data,
    transitions,
)
from depthcut.report.study import FinishedPoint, Studies
from depthcut.report.tidy import STAGES, tidy_table

DIGITS = 6
CURVE_DIGITS = 4


def page_data(found: Studies, title: str) -> dict[str, Any]:
    """Return the page's data. Numbers are rounded to 6 digits; a missing number is null."""
    rows = tidy_table(found.records)
    lines, dense = curves.curve_lines(rows), curves.dense_numbers(rows)
    counts = Counter(rows["name"])
    names = sorted(counts)
    levels = list(dense)
    place = {id(line): at for at, line in enumerate(lines)}
    seen_maps = score_maps.load_score_maps(found.points)
    strips = layers.layer_strips(found.records)
    return round_numbers(
        {
            "title": title,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "words": found.words,
            "running": live.running_points(found.running),
            "failures": [[str(folder), reason] for folder, reason in found.failures.items()],
            "measures": [measure_json(name, counts[name]) for name in curves.score_names(names)],
            "quantities": [name for name in names if name.startswith(curves.QUANTITIES)],
            "dense": [{"model": key[0], "evaluation": key[1], "y": numbers} for key, numbers in dense.items()],
            "lines": [line_json(line, levels) for line in lines],
            "reasons": transition_data.REASONS,
            "transitions": [
                transition_json(each, place[id(each.line)]) for each in transitions.curve_transitions(lines, dense)
            ],
            "strips": [vars(strip) for strip in strips],
            "agreements": [vars(each) for each in layers.chooser_agreements(strips)],
            "maps": [{**vars(each), "normalised": each.normalised} for each in seen_maps],
            "ranks": [vars(each) for each in score_maps.rank_correlations(seen_maps)],
        }
    ) | runs_json(found.points)


def measure_json(name: str, times: int) -> dict[str, Any]:
    """Describe a number that can be drawn: its kind, its chance level, and how often it was measured."""
    kind = "accuracy" if chance.is_accuracy(name) else "loss" if chance.is_loss(name) else "other"
    return {"name": name, "kind": kind, "chance": chance.chance_level(name), "times": times}


def line_json(line: curves.Line, levels: list[tuple[str, str]]) -> dict[str, Any]:
    """Return a curve and the index of its dense model."""
    dense = (line.keys["model"], line.keys["evaluation"])
    return {
        "key": line.key,
        "label": line.label,
        "of": {**line.keys, "depth": int(line.keys["depth"])},
        "partner": " / ".join(transitions.pairing_key(line)),
        "dense": levels.index(dense) if dense in levels else None,
        "dropped": line.dropped,
        "y": {name: [each.value, each.stderr, each.seeds] for name, each in line.names.items()},
        "runs": line.runs,
    }


def transition_json(transition: transitions.CurveTransition, line: int) -> dict[str, Any]:
    """Return a transition for the page: [estimate, low, high], or null."""
    found = transition.found
    parts = {name: getattr(found, name) for name in ("midpoint", "onset", "width")} | {"moved": transition.moved}
    intervals = {name: each and [each.at, each.low, each.high] for name, each in parts.items()}
    return {"line": line, "name": transition.name, "why": found.why, "rough": found.rough, **intervals}


class SharedValues:
    """Values that runs share, each stored once."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """Return the index of a value, which is added if new."""
        return self.places.setdefault(json.dumps(value, sort_keys=False), len(self.places))

    @property
    def values(self) -> list[Any]:
        """All values, by index."""
        return [json.loads(text) for text in self.places]


def runs_json(points: Sequence[FinishedPoint]) -> dict[str, Any]:
    """Return the runs and their healing curves; ``parts`` holds the values that they share."""
    parts = SharedValues()
    runs = [
        run_json(point, label, parts)
        for point, label in zip(points, labels.record_labels([point.record for point in points]), strict=True)
    ]
    curves = [healing_json(curve, parts) for curve in healing.healing_curves(points)]
    return {"runs": runs, "healing": curves, "parts": parts.values}


def run_json(point: FinishedPoint, label: dict[str, str], parts: SharedValues) -> dict[str, Any]:
    """Return a run: its plan in words, its numbers, and the indices in ``parts`` of its names, config and versions."""
    record = point.record
    numbers = {key: value for key, value in record.items() if "/" in key}
    plan = record["plan"]
    return {
        "digest": record["digest"],
        "study": record["study"],
        "folder": str(point.folder),
        "finished": record["finished"],
        "label": parts.place(label),
        "words": plan["words"],
        "unit": plan.get("unit", "layer"),
        "depth": plan["depth"],
        "drop": plan["drop"],
        "notes": [[key, str(value)[:400]] for key, value in plan["notes"].items()],
        "fraction": record["fraction"],
        "seed": record["config"]["seed"],
        "numbers": parts.place(list(numbers)),
        "values": round_numbers(list(numbers.values())),
        "says": table.healing_findings(record),
        "config": [parts.place({key: value}) for key, value in record["config"].items()],
        "versions": parts.place(record.get("versions", {})),
        "commit": record.get("commit"),
        "device": record.get("device"),
        "stages": [stage for stage in STAGES if any(key.startswith(f"{stage}/") for key in numbers)],
    }


def healing_json(curve: healing.HealingCurve, parts: SharedValues) -> dict[str, Any]:
    """Return a healing curve; runs with one recipe share their tokens."""
    tokens = parts.place(round_numbers(curve.tokens))
    seconds, loss = round_numbers(curve.seconds, CURVE_DIGITS), round_numbers(curve.loss, CURVE_DIGITS)
    return {"run": curve.run, "tokens": tokens, "seconds": seconds, "loss": loss, "each": curve.each}


def round_numbers(value: Any, digits: int = DIGITS) -> Any:
    """Round the numbers in a JSON value; NaN and infinity become null."""
    if isinstance(value, np.ndarray):
        return round_numbers(value.tolist(), digits)
    if isinstance(value, dict):
        return {str(key): round_numbers(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(each, digits) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
