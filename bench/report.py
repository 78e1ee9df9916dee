"""Time and size of a report on synthetic studies with complete records.

    python bench/report.py                      2,000 records, 100 curves: seconds of the whole command, bytes; then, in
                                                a headless Chromium, until the page is loaded and shows its first figure
    python bench/report.py --keep made          keep the studies and the page there

These records are synthetic: random numbers determine where accuracies and losses fall.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from depthcut.cut.plan import Plan
from depthcut.cut.scores import Scores
from depthcut.report import data, plotlyjs, study
from depthcut.runtime import store
from depthcut.study.recording import FORMAT

MODELS = {
    "llama2_7b": (32, 0.48),
    "llama2_70b": (80, 0.45),
    "mistral_7b": (32, 0.35),
    "phi_2": (32, 0.25),
    "qwen3_8b": (36, 0.2),
}
CHOICES = (
    ("angular", "block"),
    ("block_influence", "lowest"),
    ("kl", "greedy"),
    ("angular", "deepest"),
    ("taylor", "lowest"),
)
BLOCKS, SINGLES = CHOICES[0], CHOICES[-1]
LATER = {"none": 0.0, "qlora": 0.08, "lora": 0.06, "full": 0.1}  # delay of the fall, by recipe
RECIPES = tuple(LATER)
TASKS = {"mmlu_local": (0.25, 0.6, 1000), "boolq": (0.5, 0.8, 3000), "piqa": (0.5, 0.79, 1800)}
LAYER, REST = 202_400_000, 262_000_000  # parameters


@dataclass(frozen=True)
class Made:
    """One point of a synthetic study, and the place where its curve falls."""

    model: str
    choice: tuple[str, str]
    recipe: str
    seed: int
    dropped: int
    middle: float

    @property
    def depth(self) -> int:
        return MODELS[self.model][0]

    @property
    def fraction(self) -> float:
        return self.dropped / self.depth

    @property
    def digest(self) -> str:
        return store.content_digest([self.model, self.choice, self.recipe, self.seed, self.dropped])


def make(
    outputs: Path,
    records: int,
    steps: int = 1000,
    models: Sequence[str] = tuple(MODELS),
    recipes: Sequence[str] = RECIPES[:2],
) -> list[Path]:
    """Write studies of ``records`` points into ``outputs``, and their scores."""
    chance = np.random.default_rng(0)
    curves = list(product(models, CHOICES, recipes, (0, 1)))
    left = records
    for place, (model, choice, recipe, seed) in enumerate(curves):
        depth, middle = MODELS[model]
        middle += 0.04 * CHOICES.index(choice) - 0.25 * (choice[1] == "deepest")
        for n in np.unique(np.linspace(1, 0.8 * depth, -(-left // (len(curves) - place))).astype(int)):
            write(outputs, Made(model, choice, recipe, seed, int(n), max(0.05, middle)), steps, chance)
            left -= 1
    return sorted(path for path in outputs.iterdir() if path.name != "cache")


def write(outputs: Path, made: Made, steps: int, chance: Any) -> None:
    """Write one point: its record, config and healing curve."""
    config, healed = composed(made), made.recipe != "none"
    numbers = {"seconds/scores": 31.5, "bytes/read": 6.1e9, "bytes/peak_host": 9.3e9, "bytes/peak_device": 7.7e9}
    for stage, fraction in (("dense", 0.0), ("pruned", made.fraction), *((("healed", made.fraction),) * healed)):
        numbers |= measured(stage, fraction, made, chance)
    plan = planned(made, chance)
    record: dict[str, Any] = {
        "format": FORMAT,
        "digest": made.digest,
        "study": f"made_{made.model}",
        "finished": "2026-01-01T00:00:00+00:00",
        "plan": plan.to_dict(),
        "fraction": plan.fraction,
        **numbers,
        "evaluated": {},
        "exported": ["none"],
        "config": config,
        "versions": {"python": "3.11.7", "depthcut": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "commit": "0" * 40,
        "device": "made up",
    }
    if made.choice in (BLOCKS, SINGLES):
        record["scores"] = scored(outputs, made, chance)
    folder = outputs / f"made_{made.model}" / made.digest
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "record.json").write_text(json.dumps(record))
    if healed:
        (folder / "heal.csv").write_text(healing(steps, made.fraction, chance))


def planned(made: Made, chance: Any) -> Plan:
    """Return the dropped layers: a block two thirds up, the deepest, or random ones."""
    depth, n = made.depth, made.dropped
    if made.choice[1] == "deepest":
        return Plan(depth, tuple(range(depth - 1 - n, depth - 1)))
    if made.choice[1] == "block":
        start = max(0, min(round(0.62 * depth - n / 2), depth - 1 - n))
        return Plan(depth, tuple(range(start, start + n)), notes={"score": 0.1, "score_stderr": 0.01})
    drop = chance.choice(depth - 2, n, replace=False) + 1
    return Plan(depth, tuple(map(int, drop)), notes={"score": 0.1})


def measured(stage: str, fraction: float, made: Made, chance: Any) -> dict[str, float]:
    """Return the numbers of a stage: accuracies fall at the middle, the loss rises there, less if healed."""
    late = LATER[made.recipe] if stage == "healed" else 0.0
    left = 1 / (1 + math.exp(min(50, (fraction - made.middle - late) / 0.03))) if fraction else 1.0
    numbers: dict[str, float] = {}
    for task, (floor, top, questions) in TASKS.items():
        right = chance.binomial(questions, floor + (top - floor) * left) / questions
        for name in ("acc", "acc_norm"):
            numbers[f"{stage}/{task}/{name}"] = right
            numbers[f"{stage}/{task}/{name}_stderr"] = math.sqrt(right * (1 - right) / (questions - 1))
    rise = 1.5 * fraction if stage == "healed" else 7 * (1 - left) + fraction
    loss = 1.9 + rise + 0.01 * chance.standard_normal()
    parameters = REST + LAYER * round(made.depth * (1 - fraction))
    return numbers | {
        f"{stage}/validation/loss": loss,
        f"{stage}/validation/loss_stderr": 0.02,
        f"{stage}/validation/loss_over_log_v": loss / math.log(32000),
        f"{stage}/validation/perplexity": math.exp(loss),
        f"{stage}/size/parameters": parameters,
        f"{stage}/size/weight_bytes": parameters * 0.53,
        f"{stage}/size/flops_per_token": 2 * parameters,
        f"{stage}/speed/tokens_per_second": 3e13 / parameters,
    }


def composed(made: Made) -> dict[str, Any]:
    """Return a config as long as a real one."""
    text = {"_target_": "depthcut.data.hub.Hub", "repo": "allenai/c4", "span": [0.0, 0.9], "sequences": 128}
    text |= {"length": 2048, "pack": True}
    heal: dict[str, Any] = {"_target_": "depthcut.heal.none.NoHealing"}
    if made.recipe != "none":
        heal = {"_target_": f"depthcut.heal.{made.recipe}.Recipe", "steps": 5000, "batch": 16, "lr": 3e-4, "rank": 64}
        heal |= {"alpha": 64, "optimiser": "paged_adamw_8bit", "modules": "ffn", "dropout": 0.05, "length": 2048}
    metric, prune = made.choice
    size = {"frac": made.fraction, "layers": None, "unit": "layer", "keep_first": 0, "keep_last": 1}
    model = {"repo": f"made/{made.model}", "quantise": "nf4", "dtype": "bfloat16", "separator": None}
    return {
        "data": {"calibration": text, "train": text, "validation": text},
        "metric": {"_target_": f"depthcut.metric.{metric}.Metric", "token": "last", "batch": 8},
        "prune": {"_target_": f"depthcut.prune.{prune}.{prune.title()}", **size},
        "replace": {"_target_": "depthcut.replace.none.NoReplacement"},
        "heal": heal,
        "eval": {"loss": {"_target_": "depthcut.eval.loss.Loss", "batch": 4}, "tasks": list(TASKS), "limit": None},
        "log": {"_target_": "depthcut.log.csv.Csv"},
        "model": {"_target_": "depthcut.model.hub.Hub", **model},
        "name": f"made_{made.model}",
        "outputs": "outputs",
        "seed": made.seed,
        "device": "auto",
        "stages": ["dense", "pruned", "healed"],
        "export": "none",
    }


def scored(outputs: Path, made: Made, chance: Any) -> str:
    """Write scores of a model of L layers, of blocks or of single layers, once."""
    metric, edges = made.choice[0], np.arange(made.depth + 1)
    folder = outputs / "cache" / "scores" / f"{metric}{made.model.replace('_', '')}"
    if folder.exists():
        return folder.name
    folder.mkdir(parents=True)
    step = 0.02 + 0.1 * np.exp(-edges / 3) + 0.06 * (edges > made.depth - 3)
    if made.choice == SINGLES:
        layers = (step[1:] * chance.uniform(0.5, 2, made.depth)).tolist()
        Scores.of_layers(layers, [0.01] * made.depth, 128).write(folder)
    else:
        at = np.cumsum(step)
        between = np.triu(np.sqrt(np.abs(at[None, :] - at[:, None])) / 3)
        Scores.of_blocks(between.tolist(), (0.02 * between).tolist(), 128, 0).write(folder)
    return folder.name


def healing(steps: int, fraction: float, chance: Any) -> str:
    """Write a ``heal.csv``."""
    step = np.arange(1, steps + 1)
    loss = (
        2 + 1.5 * fraction + (3 + 4 * fraction) * np.exp(-step / (0.03 * steps)) + 0.08 * chance.standard_normal(steps)
    )
    rows = (f"{i},{32768 * i},{2.31 * i:.6g},{each:.6g},0.0003,0.5,14000" for i, each in zip(step, loss, strict=True))
    return "\n".join(("step,tokens,seconds,loss,lr,grad_norm,tokens_per_second", *rows)) + "\n"


def main() -> None:
    import opening  # in this folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--times", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outputs = options.keep or Path(temporary)
        studies = make(outputs, options.records, recipes=RECIPES)
        call = [sys.executable, "-m", "depthcut.report", *map(str, studies), "-o", str(outputs / "report.html")]
        start = time.monotonic()
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        wall, used = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        size = (outputs / "report.html").stat().st_size
        report = data.page_data(study.read_studies(studies), "")
        seen = opening.opened(outputs / "report.html", options.times)
    print(
        f"{len(report['runs'])} records, {len(report['lines'])} curves, {len(report['falls'])} fits: {wall:.1f} s, "
        f"{used.ru_utime + used.ru_stime:.1f} s of CPU time; {size / 1e6:.2f} MB, "
        f"{len(plotlyjs.plotly_source()) / 1e6:.2f} MB of it plotly.js"
    )
    print(seen)


if __name__ == "__main__":
    main()
