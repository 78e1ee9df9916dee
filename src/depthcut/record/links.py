"""Readable links to points: ``outputs/STUDY/named/deepest-0.25-lora`` points to ``outputs/STUDY/DIGEST``."""

import re
from pathlib import Path

FOLDER = "named"  # not the study's own folder: patterns such as outputs/STUDY/*/record.json must match a point once


def find_points(name: str, study: Path) -> list[Path]:
    """Return the points that match ``name``, each digest once: a folder, a link, or the start of a digest.

    A point of ``study`` takes precedence over one of another study in the same outputs.
    """
    path = Path(name).parent if Path(name).name == "adapter" else Path(name)
    for each in (path, study / path, study / FOLDER / path):
        if (each / "config.yaml").is_file():
            return [each]
    if not re.fullmatch("[0-9a-f]{4,16}", name):
        return []
    near = [*study.parent.glob(f"*/{name}*"), *study.glob(f"{name}*")]
    return list({each.name: each for each in near if (each / "config.yaml").is_file()}.values())
