"""Cost of each metric relative to a bare pass of the decoder stack (no head, no cache) on the same tokens.

python bench/scores.py                                         SmolLM2 on two cores: almost an hour
python bench/scores.py --metrics angular,kl --sequences 16     some minutes
python bench/scores.py --shape llama2_7b --markdown            a random model of the true shape, for a GPU

Fails if the angular map takes more than 1.1 bare passes, or one round of removals more than 0.55 of the naive passes.
"""

import argparse
import importlib
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import naive
import subjects
from depthcut.cut.scores import Scores
from depthcut.metric import RemovalMetric
from depthcut.model.decoder.prefix_cache import PrefixCache
from depthcut.runtime.progress import console as terminal
from depthcut.study import runlog
from naive import Cost

TARGET, SHARE = 1.1, 0.55
ROUNDS = 5  # for rows that take seconds; others are measured once
GREEDY, SHORT = 4, 3000  # rounds; tokens: all streams must fit in memory
HEADS = ["metric", "bare, s", "metric, s", "in bare passes", "naive", "saved", "layer passes", "head", "GB", ""]
LEGEND = """In bare passes: seconds over those of one bare pass on the same tokens; naive: likewise, ≈ where scaled up.
Layer passes: a batch, of the metric / naive; head: passes of the head a batch, the same for both.
GB: memory beside the weights, of the metric / naive.
"""
SHORTLY = {"magnitude": "reads the disk", "spectral": "reads the disk"}


@dataclass(frozen=True)
class Row:
    """One metric, measured.

    Attributes:
        name: with the options that differ from the defaults.
        bare: seconds of one bare pass over the metric's input; the median of the rounds, like the next two.
        own: seconds of the metric.
        ratio: own over bare.
        naive: seconds of the naive implementation over bare.
        other: the naive implementation, or None.
        passes: layer passes per batch of the metric; 0 if it shares none.
        memory: bytes used by the metric and by the naive implementation, in addition to the weights.
        apart: largest relative difference between the naive values of sub-networks and the metric's.
        note: remark on the row.
    """

    name: str
    bare: float = 0.0
    own: float = 0.0
    ratio: float = 0.0
    naive: float = 0.0
    other: Cost | None = None
    passes: float = 0.0
    memory: tuple[int, int] | None = None
    apart: float | None = None
    note: str = ""

    @property
    def cells(self) -> list[str]:
        """Return the row as text, without its note."""
        cells = [self.name, *([f"{self.bare:.2f}", f"{self.own:.2f}", f"{self.ratio:.3g}"] if self.bare else [""] * 3)]
        if self.other is None:
            return [*cells, "", "", "", "", ""]
        cells += [f"{'' if self.other.exact else '≈ '}{self.naive:.3g}", f"{self.naive / self.ratio:.1f} x"]
        cells += [f"{self.passes:.0f} / {self.other.passes} = {self.share:.2f}" if self.passes else ""]
        cells += [str(self.other.heads) if self.other.heads else ""]
        return [*cells, " / ".join(f"{each / 1e9:.2f}" for each in self.memory or ())]

    @property
    def share(self) -> float:
        """Return the metric's layer passes over the naive ones."""
        return self.passes / self.other.passes if self.other and self.other.passes else 0.0


def main() -> int:
    """Measure the requested metrics and print the tables; return 1 if a target is missed."""
    asked = arguments()
    if asked.shape:
        here = subjects.of_shape(asked.shape, asked.sequences, asked.tokens)
    else:
        here = subjects.of_config(asked.model, asked.sequences, asked.tokens, asked.overrides)
    if ("lora_gradient", {}) in asked.metrics:
        importlib.import_module("peft")  # not timed
    naive.bare(here.dense.whole(), list(here.texts.calibration().first(8).batches(8)))
    rows: list[Row] = []
    for name, knobs in asked.metrics:
        label = " ".join([name, *(f"{key}={value}" for key, value in knobs.items())])
        rows.append(row(label, name, knobs, here, asked))
        terminal.print(", ".join([*rows[-1].cells, rows[-1].note]), highlight=False)  # in case the process is killed
    costs(rows, here, asked)
    if any(each.name == "perplexity" for each in rows):
        greedy(here, asked)
    return int(any(missed(each) for each in rows))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="of conf/model")
    parser.add_argument("--shape", choices=subjects.SHAPES, help="a random model instead")
    parser.add_argument("--metrics", help="only these, as a,b,c")
    parser.add_argument("--sequences", type=int, help="of calibration text")
    parser.add_argument("--tokens", type=int, help="of a sequence, at most")
    parser.add_argument("--full", action="store_true", help="measure every naive sub-network")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    parser.add_argument("overrides", nargs="*", help="of the config")
    asked = parser.parse_args()
    try:
        asked.metrics = subjects.metrics(asked.metrics)
    except ValueError as error:
        parser.error(str(error))
    return asked


def row(label: str, name: str, knobs: dict[str, Any], here: Any, asked: argparse.Namespace) -> Row:
    """Measure one metric, the bare pass and the naive implementation, alternately."""
    if asked.shape and name == "task":
        return Row(label, note="not run: a random model has no tokenizer for questions")
    metric = subjects.built(name, knobs, here)
    text = naive.batches(metric, here)
    times: list[tuple[float, float, float]] = []
    scores: list[Scores] = []
    memory, other = (0, 0), None
    for _ in range(ROUNDS if name in naive.EDGES else 1):
        here.dense.prefixes = PrefixCache()
        plain = naive.bare(here.dense.whole(), text)
        try:
            own, mine = naive.peak(lambda: naive.seconds(lambda: scores.append(metric(here))))
            other, others = naive.peak(lambda: naive.way(name, metric, here, asked.full))
        except (ValueError, torch.OutOfMemoryError) as error:
            return Row(label, note=f"not run: {str(error).splitlines()[0]}")
        times.append((plain, own, other.seconds if other else 0.0))
        memory = mine, others
    pairs = [(scores[0].layer(drop[0]), value) for drop, value in other.values.items()] if other else []
    return Row(
        name=label,
        bare=statistics.median(plain for plain, _, _ in times),
        own=statistics.median(own for _, own, _ in times),
        ratio=statistics.median(own / plain for plain, own, _ in times),
        naive=statistics.median(long / plain for plain, _, long in times),
        other=other,
        passes=here.dense.prefixes.layer_passes / len(text),
        memory=memory if name in naive.GRADIENTS else None,
        apart=max((abs(a - b) / abs(b) for a, b in pairs), default=None) if isinstance(metric, RemovalMetric) else None,
        note=other.words if other else SHORTLY.get(name, "") if not asked.shape else "",
    )


def missed(each: Row) -> bool:
    """Return whether a metric misses its target."""
    removal = each.name in ("kl", "perplexity", "task")
    return (each.name == "angular token=last" and each.ratio > TARGET) or (removal and each.share > SHARE)


def costs(rows: list[Row], here: Any, asked: argparse.Namespace) -> None:
    """Print the table, and the notes below it, by letter."""
    text = here.texts.calibration()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    what = f"{asked.shape or asked.model}: {here.dense.depth} layers, {len(text)} sequences of calibration text, "
    notes = list(dict.fromkeys(each.note for each in rows if each.note))
    letter = {note: chr(ord("a") + place) for place, note in enumerate(notes)} | {"": ""}
    lines = [[*each.cells, letter[each.note]] for each in rows]
    show(f"{what}{int(text.lengths.sum())} tokens, {where}", HEADS, lines, asked)
    print("\n" + LEGEND, *(f"{letter[note]}: {note}" for note in notes), sep="\n")
    if apart := [each.apart for each in rows if each.apart is not None]:
        print(f"\nWhere both were measured, naive values and scores differ by {max(apart):.1e} of the value at most.")
    print()


def greedy(here: Any, asked: argparse.Namespace) -> None:
    """Measure layer passes and seconds of greedy's rounds, with cached streams of the previous rounds and without."""
    short, layers = subjects.shorter(here, SHORT), here.dense.depth
    metric = subjects.built("perplexity", {}, here)
    text = len(naive.batches(metric, short))
    ways, lines, removed = (PrefixCache(), PrefixCache(max_bytes=0)), list[list[str]](), tuple[int, ...]()
    for number in range(min(GREEDY, layers - 1)):
        left = [layer for layer in range(layers) if layer not in removed]
        passes, took, found = list[str](), list[str](), list[Scores]()
        for streams in ways:
            short.dense.prefixes, before = streams, streams.layer_passes
            start = naive.now()
            found.append(metric(short, removed))
            took.append(f"{naive.now() - start:.2f}")
            passes.append(f"{(streams.layer_passes - before) / text:.0f}")
        lines.append([str(number + 1), *passes, str(len(left) * (len(left) - 1)), *took])
        removed = tuple(sorted((*removed, min(left, key=lambda layer: found[0].layer(left.index(layer))))))
    heads = ["round", "layer passes, cached streams", "afresh", "naive", "seconds, cached streams", "afresh"]
    show(f"prune=greedy with perplexity, {len(short.texts.calibration())} sequences", heads, lines, asked)


def show(title: str, heads: list[str], lines: list[list[str]], asked: argparse.Namespace) -> None:
    """Print a table, as text or as Markdown."""
    if asked.markdown:
        print(f"{title}\n")
        for line in (heads, ["---"] * len(heads), *lines):
            print(f"| {' | '.join(line)} |")
        return
    table = Table(title=title, title_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=132).print(table)


if __name__ == "__main__":
    with runlog.quiet_libraries():
        sys.exit(main())
