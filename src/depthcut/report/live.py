"""Running points: description, progress, and healing curve so far."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthcut.report import healing, state

NO_CURVE = healing.HealingCurve(-1, [], [], [], 1)


def running_points(running: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one entry per running point, for :func:`depthcut.report.data.page_data`."""
    return [running_point(folder) for folder in running]


def running_point(folder: Path) -> dict[str, Any]:
    """Describe a running point from its folder; ``heal.csv`` does not exist before the first checkpoint."""
    curve = healing.thin_curve(-1, healing.read_loss_curve(folder / "heal.csv"), healing.MAX_POINTS) or NO_CURVE
    return {
        "digest": folder.name,
        "study": folder.parent.name,
        "words": state.describe_point(folder),
        "steps": state.healed_steps(folder),
        "tokens": curve.tokens,
        "seconds": curve.seconds,
        "loss": curve.loss,
        "each": curve.each,
    }
