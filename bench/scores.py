"""What each metric costs, over one bare pass of the decoder stack (no head, no cache) on the same tokens, and naively.

python bench/scores.py                                         SmolLM2 on two cores: the better part of an hour
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

import naive
import subjects
import torch
from naive import Cost, bare, batches, peak, seconds
from rich.console import Console
from rich.table import Table

from depthcut.metric import Removal
from depthcut.metric.kl import Kl
from depthcut.progress import console as terminal
from depthcut.removal import Streams

TARGET, SHARE = 1.1, 0.55
ROUNDS = 5  # of what takes seconds; the rest is measured once
GREEDY, SHORT = 4, 3000  # rounds; tokens: all streams must be held
HEADS = ("metric", "bare, s", "metric, s", "in bare", "naive in bare", "saved", "layer passes", "head passes", "naive")


@dataclass(frozen=True)
class Row:
    """One metric, measured.

    Attributes:
        name: with the knobs that differ from the defaults.
        bare: seconds of one bare pass over what the metric reads; the median, as the next.
        own: seconds of the metric.
        ratio: the median of each round's own over bare.
        other: the naive way; None where there is none.
        passes: layer passes a batch that the metric made; 0 where it shares none.
        memory: how much memory the metric and the naive way took beside the weights, in bytes.
        apart: how much the naive values of sub-networks differ from the metric's, at most, relatively.
        note: what to know.
    """

    name: str
    bare: float = 0.0
    own: float = 0.0
    ratio: float = 0.0
    other: Cost | None = None
    passes: float = 0.0
    memory: tuple[int, int] | None = None
    apart: float | None = None
    note: str = ""

    @property
    def cells(self) -> list[str]:
        """The row as text."""
        if not self.bare:
            return [self.name, *[""] * (len(HEADS) - 2), self.note]
        cells = [self.name, f"{self.bare:.2f}", f"{self.own:.2f}", f"{self.ratio:.3g}"]
        if self.other is None:
            return [*cells, *[""] * (len(HEADS) - 5), self.note]
        other = self.other.seconds
        cells += [f"{other / self.bare:.3g}", f"{other / self.own:.1f} x"]
        cells += [f"{self.passes:.0f} / {self.other.passes} = {self.share:.2f}" if self.passes else ""]
        cells += [f"{self.other.heads} / {self.other.heads}" if self.other.heads else ""]
        words = self.other.words
        if self.memory:
            words += "; memory beside the weights {:.2f} against {:.2f} GB".format(
                *(each / 1e9 for each in self.memory)
            )
        return [*cells, words]

    @property
    def share(self) -> float:
        """The metric's layer passes over the naive ones."""
        return self.passes / self.other.passes if self.other and self.other.passes else 0.0


def main() -> int:
    """Measure all metrics that are asked for and print the tables; 1 if a target is missed."""
    asked = arguments()
    if asked.shape:
        here = subjects.of_shape(asked.shape, asked.sequences, asked.tokens)
    else:
        here = subjects.of_config(asked.model, asked.sequences, asked.tokens, asked.overrides)
    importlib.import_module("peft")  # off the clock
    bare(here.dense(), list(here.calibration().first(8).batches(8)))
    rows: list[Row] = []
    for name, knobs in subjects.metrics(asked.metrics and asked.metrics.split(",")):
        label = " ".join([name, *(f"{key}={value}" for key, value in knobs.items())])
        terminal.print(label, highlight=False)
        rows.append(row(label, name, knobs, here, asked))
    text = here.calibration()
    threads = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    what = f"{asked.shape or asked.model}, {here.checkpoint.depth} layers, {len(text)} sequences"
    show(f"{what}, {int(text.lengths.sum())} tokens, {threads}", list(HEADS), [each.cells for each in rows], asked)
    for each in rows:
        if each.apart is not None:
            print(f"{each.name}: the naive values that were measured differ by {each.apart:.1e} of the value at most")
    if any(each.name == "kl" for each in rows):
        greedy(here, asked)
    return int(any(missed(each) for each in rows))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="of conf/model")
    parser.add_argument("--shape", choices=subjects.SHAPES, help="a random model in its place")
    parser.add_argument("--metrics", help="only these: a,b,c")
    parser.add_argument("--sequences", type=int, help="of calibration text")
    parser.add_argument("--tokens", type=int, help="of a sequence, at most")
    parser.add_argument("--full", action="store_true", help="measure every naive sub-network")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    parser.add_argument("overrides", nargs="*", help="of the config")
    return parser.parse_args()


def row(label: str, name: str, knobs: dict[str, Any], here: Any, asked: argparse.Namespace) -> Row:
    """Measure one metric, the bare pass and the naive way in turn."""
    if asked.shape and name == "task":
        return Row(
            label, note="reads questions, for which a random model has no tokenizer; it costs what perplexity does"
        )
    metric, model, layers = subjects.built(name, knobs, here), here.dense(), here.checkpoint.depth
    times: list[tuple[float, float, Cost | None]] = []
    scores, memory, text = [], None, batches(metric, here)
    for _ in range(ROUNDS if name in naive.EDGES else 1):
        here.streams = Streams()
        plain = bare(model, text)
        try:
            own, mine = peak(lambda: seconds(lambda: scores.append(metric(here))))
        except ValueError as error:
            return Row(label, note=f"not run: {error}")
        other, others = peak(lambda: naive.way(name, metric, here, asked.full))
        times.append((plain, own, other))
        memory = (mine, others) if name in naive.GRADIENTS else None
    values = times[-1][2].values if times[-1][2] else {}
    pairs = [(scores[0].layer(drop[0]), value) for drop, value in values.items()]
    other = min((each for _, _, each in times if each), key=lambda each: each.seconds, default=None)
    return Row(
        name=label,
        bare=statistics.median(plain for plain, _, _ in times),
        own=statistics.median(own for _, own, _ in times),
        ratio=statistics.median(own / plain for plain, own, _ in times),
        other=other,
        passes=here.streams.passes / len(text),
        memory=memory,
        apart=max((abs(a - b) / abs(b) for a, b in pairs), default=None) if isinstance(metric, Removal) else None,
        note={"magnitude": "reads the disk", "spectral": "reads the disk"}.get(name, "") if not asked.shape else "",
    )


def missed(each: Row) -> bool:
    """Whether a metric is over its target."""
    removal = each.name in ("kl", "perplexity", "task")
    return (each.name.startswith("angular") and each.ratio > TARGET) or (removal and each.share > SHARE)


def greedy(here: Any, asked: argparse.Namespace) -> None:
    """Layer passes and seconds of greedy's rounds, with streams kept from the rounds before, and without."""
    short = subjects.shorter(here, SHORT)
    metric = subjects.built("kl", {}, here)
    assert isinstance(metric, Kl)
    text, layers = len(batches(metric, short)), here.checkpoint.depth
    kept, afresh, removed, lines = Streams(), Streams(limit=0), (), list[list[str]]()
    for number in range(min(GREEDY, layers - 1)):
        figures: list[tuple[float, float]] = []
        for streams in (kept, afresh):
            short.streams, before = streams, streams.passes
            took = seconds(lambda gone=removed: metric(short, gone))
            figures.append(((streams.passes - before) / text, took))
        left = layers - number
        lines.append(
            [str(number + 1), *(f"{passes:.0f}" for passes, _ in figures), f"{left * (left - 1)}"]
            + [f"{took:.2f}" for _, took in figures]
        )
        scores, still = metric(short, removed), [layer for layer in range(layers) if layer not in removed]
        removed = tuple(
            sorted((*removed, min(zip(still, map(scores.layer, range(left)), strict=True), key=lambda x: x[1])[0]))
        )
    heads = ["round", "passes, kept", "afresh", "naive", "seconds, kept", "afresh"]
    show(f"prune=greedy on kl, {len(short.calibration())} sequences: layer passes a batch", heads, lines, asked)


def show(title: str, heads: list[str], lines: list[list[str]], asked: argparse.Namespace) -> None:
    """Print a table, for people or as Markdown."""
    if asked.markdown:
        print(f"{title}\n")
        for line in (heads, ["---"] * len(heads), *lines):
            print(f"| {' | '.join(line)} |")
        return
    table = Table(title=title, title_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place in (0, 8) else "right")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
