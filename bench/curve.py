"""The README's picture: loss and accuracy against the share of layers cut, out of the records of a study.

python run.py -m name=curve heal=none export=none prune=block,deepest prune.frac=0,0.1,0.2,0.27,0.33,0.4,0.5
python run.py -m name=curve export=none prune.frac=0.1,0.2,0.27,0.4,0.5          # the healed points, minutes each
python bench/curve.py docs/smollm2.png outputs/curve
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from depthcut.report import table

LINES = (
    ("block", "pruned", "lowest angular distance", "#0072B2", "o--"),
    ("deepest", "pruned", "deepest", "#999999", "s--"),
    ("block", "healed", "lowest angular distance, healed", "#D55E00", "o-"),
)
PANELS = (("validation/loss", "held-out loss, nats a token", None), ("capitals/acc", "capitals, accuracy", 0.25))


def main(picture: Path, studies: list[Path]) -> None:
    """Draw one panel a number, one line a method."""
    rows = [row for study in studies for row in table.of_folder(study)[0]]
    figure, panels = plt.subplots(1, len(PANELS), figsize=(9, 3.4), layout="constrained")
    for axes, (name, title, chance) in zip(panels, PANELS, strict=True):
        for prune, stage, label, colour, style in LINES:
            draw(axes, points(rows, prune, stage, name), label, colour, style)
        axes.axhline(rows[0][f"dense/{name}"], color="black", linewidth=0.8, label="dense")
        if chance:
            axes.axhline(chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set(xlabel="share of the layers cut", title=title)
    panels[0].legend(fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


def points(rows: list[dict[str, Any]], prune: str, stage: str, name: str) -> list[tuple[float, float, float]]:
    """(fraction, value, standard error) of one line, by fraction."""
    key = f"{stage}/{name}"
    mine = [row for row in rows if table.method_name(row, "prune") == prune and key in row]
    return sorted({(row["fraction"], row[key], row.get(f"{key}_stderr", 0.0)) for row in mine})


def draw(axes: Any, line: list[tuple[float, float, float]], label: str, colour: str, style: str) -> None:
    """One line with its standard errors."""
    if line:
        x, y, error = zip(*line, strict=True)
        axes.errorbar(x, y, yerr=error, fmt=style, color=colour, label=label, markersize=4, capsize=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(study) for study in sys.argv[2:]])
