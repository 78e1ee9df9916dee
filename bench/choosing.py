"""Compares the layers that each method drops from a small model, and the loss of each cut: docs/choosing.md.

python bench/choosing.py                     under an hour on two cores, half a minute if all is cached
python bench/choosing.py --metrics kl --fractions 0.25 --to kl.md model=gemma3_270m

Every point is one of run.py's, cached by content, so a killed command resumes. Text above the tables is kept.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from depthcut.cli.point import run_point
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.record import state
from depthcut.runtime import progress, store
from depthcut.study import curve, digests, recording
from depthcut.study.run import Run, open_run
from depthcut.study.scoring import Scoring

ROOT = Path(__file__).parents[1]
START, END = "<!-- made by `python bench/choosing.py` -->\n", "<!-- /choosing -->\n"
FRACTIONS = "0.1,0.2,0.3,0.4,0.5"
COMMON = ("name=choosing", "heal=none", "eval=[loss]", "stages=[dense,pruned]", "export=none")
PLUS = "prune.keep_first=4 prune.keep_last=2"  # Shortened LLaMA's own
# Methods that run many sub-networks read less text.
LESS, LEAST = "data.calibration.sequences=32", "data.calibration.sequences=4"
ROWS = (
    "prune=deepest",
    "prune=every",
    "prune=random",
    "metric=random prune=block",
    "metric=angular prune=block",
    "metric=angular prune=blocks",
    "metric=angular prune=lowest",
    "metric=angular metric.token=all prune=block",
    "metric=block_influence prune=block",
    "metric=block_influence prune=lowest",
    "metric=update prune=block",
    "metric=update prune=lowest",
    "metric=linearity prune=block",
    "metric=linearity prune=lowest",
    f"metric=perplexity prune=lowest {LESS}",
    f"metric=perplexity prune=lowest {PLUS} {LESS}",
    f"metric=kl prune=block {LESS}",
    f"metric=kl prune=lowest {LESS}",
    f"metric=kl prune=greedy {LEAST}",
    f"metric=kl prune=evolution prune.generations=8 prune.offspring=8 prune.samples=[1,4] {LEAST}",
    "metric=task prune=lowest",
    f"metric=shapley prune=lowest {LEAST}",
    "metric=taylor prune=lowest",
    f"metric=taylor prune=lowest {PLUS}",
    f"metric=lora_gradient prune=lowest {LESS}",
    "metric=magnitude prune=lowest",
    f"metric=magnitude prune=lowest {PLUS}",
    "metric=spectral prune=lowest",
)


@dataclass(frozen=True)
class Point:
    """One cut, with its checked config."""

    composed: DictConfig
    here: Run

    def record(self) -> dict[str, Any]:
        """Return the point's record; run the point if it is missing."""
        kept = recording.finished_record(self.here)
        if kept is None:
            run_point(self.composed)
            kept = state.read_record(self.here.folder)
        assert kept is not None
        return kept


@dataclass(frozen=True)
class Row:
    """One method: its overrides, and a point and a record for each fraction."""

    words: str
    points: list[Point]
    records: list[dict[str, Any]]

    def cell(self, group: str) -> str:
        """Return the overrides of a group, e.g. ``lowest keep_first=4``."""
        mine = (word for word in self.words.split() if word.startswith(group))
        return " ".join(word.removeprefix(f"{group}=").removeprefix(f"{group}.") for word in mine)

    @property
    def text(self) -> str:
        """Return the number of calibration sequences of the metric; empty if it reads none."""
        x = self.points[0].here.experiment
        return str(x.data.calibration.sequences) if x.prune.reads_scores and x.metric.reads_text else ""


def main() -> None:
    """Check all points, run the missing ones, write the tables."""
    asked = arguments()
    fractions = [float(word) for word in asked.fractions.split(",")]
    rows = [words for words in ROWS if metric_of(words) in ("", *asked.metrics)]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        points = {words: [point(words, fraction, asked.overrides) for fraction in fractions] for words in rows}
    curve.share_passes([each.composed for mine in points.values() for each in mine])
    done: list[Row] = []
    for place, (words, mine) in enumerate(points.items(), start=1):
        progress.print_line(f"{place} of {len(points)}: {words}")
        done.append(Row(words, mine, [each.record() for each in mine]))
    made = "\n".join([losses(done), layers(done), correlations(done), command(done, fractions)])
    before = asked.to.read_text(encoding="utf-8") if asked.to.exists() else "# How to choose the layers\n\n"
    above, _, rest = before.partition(START)
    store.write_text(asked.to, above + START + made + END + rest.partition(END)[2])
    progress.print_line(f"wrote {asked.to}")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", help="only these, as a,b,c, and the pruners without a metric")
    parser.add_argument("--fractions", default=FRACTIONS, help="fractions of layers to drop")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "choosing.md")
    parser.add_argument("overrides", nargs="*", help="overrides for all points")
    asked, there = parser.parse_args(), sorted({metric_of(words) for words in ROWS} - {""})
    asked.metrics = asked.metrics.split(",") if asked.metrics else there
    if strangers := [name for name in asked.metrics if name not in there]:
        parser.error(f"--metrics: no metric {strangers[0]!r}; available: {', '.join(there)}")
    return asked


def metric_of(words: str) -> str:
    """Return the metric's name, or an empty string."""
    return next((word.removeprefix("metric=") for word in words.split() if word.startswith("metric=")), "")


def point(words: str, fraction: float, overrides: list[str]) -> Point:
    """Compose and check one point, as run.py does."""
    own = [f"outputs={ROOT / 'outputs'}", *COMMON, *words.split(), f"prune.frac={fraction}"]
    composed = compose("config", overrides=[*own, *overrides])
    return Point(composed, open_run(build.build_experiment(composed)))


def losses(rows: list[Row]) -> str:
    """Return the table of losses after each cut; the first row is the dense model, the best of a column is bold."""
    first = rows[0].records
    found = [[each.get("pruned/validation/loss", np.inf) for each in row.records] for row in rows]
    best = np.min(found, axis=0)
    errors = [each.get("pruned/validation/loss_stderr", 0.0) for row in rows for each in row.records]
    dense = f"{first[0]['dense/validation/loss']:.3f}"
    lines = [["dense model", "", "", *[dense] * len(first)]]
    for row, values in zip(rows, found, strict=True):
        cells = [
            f"**{value:.3f}**" if value == low else f"{value:.3f}" for value, low in zip(values, best, strict=True)
        ]
        lines.append([row.cell("metric"), row.cell("prune"), row.text, *cells])
    said = (
        "Held-out loss without healing, in nats per token; the best of each column is bold. Standard errors over the "
        f"{len_of_validation(rows)} sequences are {min(errors):.3f} to {max(errors):.3f}; all rows use the "
        "same sequences, so differences are more certain. *text*: calibration sequences of the metric."
    )
    return f"## Loss\n\n{said}\n\n" + table(["metric", "prune", "text", *sizes(first)], lines)


def len_of_validation(rows: list[Row]) -> Any:
    """Return the number of validation sequences."""
    return rows[0].records[0]["config"]["data"]["validation"]["sequences"]


def layers(rows: list[Row]) -> str:
    """Return the table of the layers that each method drops."""
    lines = [[row.cell("metric"), row.cell("prune"), *[spelt(each) for each in row.records]] for row in rows]
    heads = ["metric", "prune", *sizes(rows[0].records)]
    last = rows[0].records[0]["plan"]["depth"] - 1
    return f"## Dropped layers\n\nOf layers 0 to {last}.\n\n" + table(heads, lines)


def spelt(of: dict[str, Any]) -> str:
    """Return a record's cut in words."""
    return Plan.from_dict(of["plan"]).words.removeprefix("drops layers ").removeprefix("drops layer ").split(" of ")[0]


def sizes(records: list[dict[str, Any]]) -> list[str]:
    """Return the headings of the fractions' columns."""
    return [f"{each['fraction']:.0%}" for each in records]


def correlations(rows: list[Row]) -> str:
    """Return Spearman's rank correlations between the scores of single layers, from the first row of each metric."""
    scored: dict[str, list[float]] = {}
    for row in rows:
        here = row.points[0].here
        if row.cell("metric") and row.cell("metric") not in scored:
            scores = Scoring(here)()
            scored[row.cell("metric")] = [scores.layer(index) for index in range(scores.depth)]
            here.dense.release()
    values = np.atleast_2d(np.corrcoef([ranks(each) for each in scored.values()]))
    lines = [
        [f"{place} {name}", *(f"{value:.2f}" for value in line[:place])]
        for place, (name, line) in enumerate(zip(scored, values, strict=True), start=1)
    ]
    said = "Spearman's, between the scores of all single layers, each metric on its text as above."
    return f"## Rank correlations\n\n{said}\n\n" + table(["", *map(str, range(1, len(lines) + 1))], lines)


def ranks(values: list[float]) -> np.ndarray:
    """Return the rank of each value; ties get their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def command(rows: list[Row], fractions: list[float]) -> str:
    """Return the section on reproduction, with the command of a row."""
    newest = max((each for row in rows for each in row.records), key=lambda each: each["finished"])
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    shared = " ".join(COMMON)
    example = f"python run.py -m {shared} {rows[-1].words} prune.frac={','.join(map(str, fractions))}"
    said = (
        "`python bench/choosing.py` generates this page and caches its results. The last row alone:\n\n"
        f"    {example}\n\n"
        f"The newest number is from {newest['finished'][:10]}, on {newest['device']}. {versions}; "
        f"base model {digests.base_digest(rows[0].points[0].here)}, commit {newest['commit']}.\n"
    )
    return f"## How it was made\n\n{said}"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table; short rows are padded."""
    full = [heads, ["---"] * len(heads), *[[*line, *[""] * (len(heads) - len(line))] for line in lines]]
    return "".join(f"| {' | '.join(line)} |\n" for line in full)


if __name__ == "__main__":
    main()
