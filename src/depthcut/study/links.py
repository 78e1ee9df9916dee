"""Readable links to points: ``outputs/STUDY/named/deepest-0.25-lora`` points to ``outputs/STUDY/DIGEST``."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.record.links import FOLDER

if TYPE_CHECKING:
    from depthcut.config.experiment import Experiment

SIZES = ("layers", "parameters", "weight_bytes", "cache_bytes", "drop")


def link_point(point: Path, x: "Experiment") -> None:
    """Link to ``point`` by name; a name already taken gets the digest too. Not every file system supports links."""
    folder = point.parent / FOLDER
    name = point_label(x)
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        for link in (folder / name, folder / f"{name}-{point.name[:8]}"):
            if link.is_symlink() and not link.exists():
                link.unlink()  # its point was deleted
            with suppress(FileExistsError):
                link.symlink_to(os.path.join("..", point.name))  # noqa: PTH118
            if link.resolve() == point.resolve():
                return


def point_label(x: "Experiment") -> str:
    """Return a label that distinguishes the points of a study: metric, pruner, cut size, replacement, healing."""
    prune: dict[str, Any] = x.composed["prune"]
    size = next((f"{key}{prune[key]}" for key in SIZES if prune.get(key) is not None), str(prune.get("frac", "")))
    metric = x.metric.word if x.prune.reads_scores else ""
    replace = "" if x.replace.word == "none" else x.replace.word
    heal = "unhealed" if x.heal.word == "none" else x.heal.word
    parts = [re.sub(r"[^\w.+-]+", "_", each).strip("_") for each in (metric, x.prune.word, size, replace, heal)]
    return "-".join(filter(None, parts))[:120]
