"""Healing curves: training loss against tokens and seconds, thinned for a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthcut.report.study import FinishedPoint
from depthcut.runtime import documents

Array = NDArray[np.float64]
COLUMNS = ("tokens", "seconds", "loss")
MAX_POINTS = 50  # most points of a curve ...
MIN_POINTS = 20  # ... fewest, if the curves are many
PAGE_POINTS = 40_000  # points of all curves of a page


@dataclass(frozen=True)
class HealingCurve:
    """Training loss of one run.

    Attributes:
        run: index of the run among the points.
        tokens: tokens read so far.
        seconds: seconds elapsed so far.
        loss: mean over ``each`` steps.
        each: steps per point.
    """

    run: int
    tokens: list[float]
    seconds: list[float]
    loss: list[float]
    each: int


def healing_curves(points: Sequence[FinishedPoint], kept: int | None = None) -> list[HealingCurve]:
    """Return all healing curves, with at most ``kept`` points each; None: as many points as fit on a page."""
    kept = kept or max(MIN_POINTS, min(MAX_POINTS, PAGE_POINTS // max(1, len(points))))
    found = (thin_curve(run, read_loss_curve(point.folder / "heal.csv"), kept) for run, point in enumerate(points))
    return [curve for curve in found if curve is not None]


def read_loss_curve(path: Path) -> Array:
    """Read tokens, seconds and loss by step, S x 3; unreadable lines are skipped."""
    import pandas as pd

    try:
        if not path.is_file() or path.stat().st_size > documents.LIMIT:
            return np.empty((0, 3))
        frame = pd.read_csv(path, usecols=list(COLUMNS), on_bad_lines="skip")[list(COLUMNS)]
    except (OSError, ValueError):
        return np.empty((0, 3))
    steps = frame.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    return steps[np.isfinite(steps).all(1)]


def thin_curve(run: int, steps: Array, kept: int) -> HealingCurve | None:
    """Thin a curve to at most ``kept`` points, each the mean loss of equally many steps, at the last of them."""
    if not len(steps):
        return None
    each = math.ceil(len(steps) / kept)
    starts = np.arange(0, len(steps), each)
    ends = np.minimum(starts + each, len(steps)) - 1
    losses = np.add.reduceat(steps[:, 2], starts) / (ends - starts + 1)
    return HealingCurve(run, steps[ends, 0].tolist(), steps[ends, 1].tolist(), losses.tolist(), each)
