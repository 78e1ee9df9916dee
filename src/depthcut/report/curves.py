"""Curves of the tidy table: a number against the size of the cut, averaged over seeds, with standard errors."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from depthcut.runtime import store

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("stage", "model", "metric", "prune", "replace", "recipe", "evaluation", "unit", "depth")
QUANTITIES = ("size/", "speed/")
"""Prefixes of numbers that are sizes or speeds, not scores: axes instead of measures."""


@dataclass
class CurveValues:
    """One number along a curve, by point; NaN where it was not measured.

    Attributes:
        value: means over seeds.
        stderr: standard errors of the means, from the items and, with several seeds, from the seeds.
        seeds: number of seeds per mean.
    """

    value: list[float]
    stderr: list[float]
    seeds: list[int]


@dataclass
class Line:
    """One line of a figure, along which only the size of the cut varies.

    Attributes:
        keys: identity of the line, by KEYS; ``recipe`` is empty if it is not healed.
        dropped: number of dropped layers, by point, ascending.
        names: the numbers, each by point.
        runs: indices of the records behind each point.
    """

    keys: dict[str, str]
    dropped: list[int]
    names: dict[str, CurveValues]
    runs: list[list[int]] = field(default_factory=list[list[int]])

    @property
    def key(self) -> str:
        """A short name, the same in every report."""
        return store.content_digest(self.keys)[:8]

    @property
    def fraction(self) -> list[float]:
        """Fraction of layers dropped, by point."""
        return [n / int(self.keys["depth"]) for n in self.dropped]

    @property
    def healed(self) -> bool:
        """True if the points were healed."""
        return self.keys["stage"] == "healed"

    @property
    def label(self) -> str:
        """Legend text, without the model."""
        prune = " ".join(filter(None, (self.keys["metric"], self.keys["prune"])))
        unit = "" if self.keys["unit"] == "layer" else f" ({self.keys['unit']})"
        replace = "" if self.keys["replace"] == "none" else f" + {self.keys['replace']}"
        evaluation = f" [{self.keys['evaluation']}]" if self.keys["evaluation"] else ""
        return f"{prune}{unit}{replace}, {self.keys['recipe'] or 'not healed'}{evaluation}"


def curve_lines(table: "pd.DataFrame") -> list[Line]:
    """Return all curves of a tidy table; an unhealed model without a cut is the dense model, not a point."""
    import pandas as pd

    healed = table.loc[table["stage"] == "healed"]
    # The same unhealed cut is the same model, whatever recipes and seeds follow.
    unhealed = table.loc[(table["stage"] == "pruned") & (table["dropped"] > 0)]
    once = [unhealed.drop_duplicates(subset=[*KEYS, "cut", "name"]), healed.drop_duplicates(subset=["digest", "name"])]
    rows = pd.concat(once)
    rows = rows.assign(variance=rows["stderr"] ** 2)
    means = rows.groupby([*KEYS, "dropped", "name"], sort=True).agg(
        value=("value", "mean"), spread=("value", "var"), seeds=("value", "size"), variance=("variance", "mean")
    )
    runs: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for (*keys, dropped), some in pd.concat([unhealed, healed]).groupby([*KEYS, "dropped"])["run"]:  # pyright: ignore[reportGeneralTypeIssues]
        runs.setdefault(tuple(map(str, keys)), {})[dropped] = sorted(set(some.tolist()))
    found: dict[tuple[str, ...], dict[int, dict[str, tuple[float, float, int]]]] = {}
    for (*keys, dropped, name), value, spread, seeds, variance in means.itertuples(name=None):
        point = found.setdefault(tuple(map(str, keys)), {}).setdefault(dropped, {})
        point[name] = (value, stderr_over_seeds(variance, spread, seeds), seeds)
    return [build_line(keys, points, runs[keys]) for keys, points in found.items()]


def build_line(
    keys: tuple[str, ...],
    points: dict[int, dict[str, tuple[float, float, int]]],
    runs: dict[int, list[int]],
) -> Line:
    """Build one curve from its points."""
    dropped = sorted(points)
    names = sorted({name for point in points.values() for name in point})
    missing = (math.nan, math.nan, 0)
    columns = {name: zip(*(points[n].get(name, missing) for n in dropped), strict=True) for name in names}
    measured = {name: CurveValues(*map(list, column)) for name, column in columns.items()}
    return Line(dict(zip(KEYS, keys, strict=True)), dropped, measured, [runs[n] for n in dropped])


def stderr_over_seeds(variance: float, spread: float, seeds: int) -> float:
    """Return the standard error of a mean over seeds; all seeds share the items, so their error does not shrink."""
    parts = [variance if math.isfinite(variance) else None, spread / seeds if seeds > 1 else None]
    known = [part for part in parts if part is not None]
    return math.sqrt(sum(known)) if known else math.nan


def dense_numbers(table: "pd.DataFrame") -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """Return the numbers of the dense models with standard errors, by model and evaluation."""
    found: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    rows = table.loc[table["stage"] == "dense"].drop_duplicates(subset=["model", "evaluation", "name"])
    columns = [rows[name] for name in ("model", "evaluation", "name", "value", "stderr")]
    for model, evaluation, name, value, stderr in zip(*columns, strict=True):
        found.setdefault((model, evaluation), {})[name] = (value, stderr)
    return found


def score_names(names: "list[str] | dict[str, CurveValues]") -> list[str]:
    """Return the names of numbers that a figure can draw: no sizes, no speeds."""
    return [name for name in names if not name.startswith(QUANTITIES)]
