"""Points that a process is at work on: what each is, how far it is, and its healing curve so far."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthcut.report import healing, state

NONE_YET = healing.Healing(-1, [], [], [], 1)


def of(running: Sequence[Path]) -> list[dict[str, Any]]:
    """One entry a point, for :func:`depthcut.report.data.of`."""
    return [of_point(folder) for folder in running]


def of_point(folder: Path) -> dict[str, Any]:
    """A point, from its folder: ``heal.csv`` is written whenever a checkpoint is; before the first there is none."""
    curve = healing.thinned(-1, healing.rows(folder / "heal.csv"), healing.KEPT) or NONE_YET
    return {
        "digest": folder.name,
        "study": folder.parent.name,
        "words": state.words(folder),
        "steps": state.steps(folder),
        "tokens": curve.tokens,
        "seconds": curve.seconds,
        "loss": curve.loss,
        "each": curve.each,
    }
