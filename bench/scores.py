"""What the angular map costs: all blocks of SmolLM2, over one bare pass of the decoder stack on the same tokens.

python bench/scores.py            about a minute on two cores; the target is a ratio of at most 1.1
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from depthcut import config, depth, forward, lab
from depthcut.metric.angular import Angular

ROOT = Path(__file__).parents[1]
TARGET = 1.1
ROUNDS = 5


def main() -> int:
    """Time both ways in turn and print the ratio of their medians."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        here = lab.enter(config.read(compose("config", overrides=[f"outputs={ROOT / 'outputs'}"])))
    model, text = here.dense(), here.calibration()
    batch = 8
    metric = Angular(token="last", batch=batch)

    def bare() -> None:
        with torch.inference_mode():
            for ids_BT, mask_BT in text.batches(batch):
                depth.decoder(model)(**forward.inputs(model, ids_BT, mask_BT))

    def scored() -> None:
        metric(here)

    bare()
    times = [(seconds(bare), seconds(scored)) for _ in range(ROUNDS)]
    ratio = statistics.median(score / plain for plain, score in times)
    blocks = here.checkpoint.depth * (here.checkpoint.depth + 1) // 2
    tokens = int(text.lengths.sum())
    table = Table(title=f"{blocks} blocks, {len(text)} samples, {tokens} tokens, {torch.get_num_threads()} threads")
    for head in ("bare forward, s", "angular map, s", "ratio (median of pairs)", "target"):
        table.add_column(head, justify="right")
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    table.add_row(f"{medians[0]:.2f}", f"{medians[1]:.2f}", f"{ratio:.3f}", f"{TARGET}")
    Console().print(table)
    return int(ratio > TARGET)


def seconds(work: Callable[[], None]) -> float:
    """How long ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
