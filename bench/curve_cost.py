"""What the unhealed curve costs: all cuts in one shared pass, over each through lm-eval's HFLM, the model loaded once.

python bench/curve_cost.py                       SmolLM2, capitals and topics, 100 questions each: an hour on two cores
python bench/curve_cost.py --every 5             a fifth of the cuts alone, scaled: ten minutes
python bench/curve_cost.py --shape llama2_7b     random weights of that shape on a GPU, 17 points: a minute

Layer passes are counted a context; the head's by scored positions. Targets: `deepest` at most 3 times one dense HFLM
evaluation; `block` and `deepest` together at least 4 times faster than each alone; the 7B shape at least 6 times.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table

from depthcut import config, depth, harness, lab, walk
from depthcut.plan import Plan
from depthcut.pricing import Pricing

ROOT = Path(__file__).parents[1]
TASKS = ("capitals", "topics")
HEADS = ("cuts", "", "alone, s", "shared, s", "faster", "of one dense", "layer passes", "formula", "largest gap")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="questions a task")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--every", type=int, default=1, help="measure each n-th cut alone and scale")
    parser.add_argument("--shape", choices=["llama2_7b"], help="random weights on a GPU instead of SmolLM2")
    asked = parser.parse_args()
    here, sets = random_7b() if asked.shape else smollm2(asked.dtype)
    table = Table(title=f"{len(TASKS)} tasks, {asked.limit} questions each, {here.device}")
    for head in (
        "cuts",
        "",
        "alone, s",
        "shared, s",
        "faster",
        "of one dense",
        "layer passes",
        "formula",
        "largest gap",
    ):
        table.add_column(head, justify="right")
    dense, _ = alone(here, Plan(here.checkpoint.depth, ()), asked)
    for name, plans in sets.items():
        some = plans[:: asked.every]
        found = [alone(here, plan, asked) for plan in some]
        each = sum(seconds for seconds, _ in found) * len(plans) / len(some)
        harness.evaluate(here.dense(), here, list(TASKS), asked.limit, asked.batch, plans[:1])  # warm
        passes = count_passes()
        start = time.perf_counter()
        shared = harness.evaluate(here.dense(), here, list(TASKS), asked.limit, asked.batch, plans)
        seconds = time.perf_counter() - start
        gap = max(apart(one, shared[plans.index(plan)]) for plan, (_, one) in zip(some, found, strict=True))
        made = passes() / contexts(here, asked)
        table.add_row(
            str(len(plans)),
            name,
            f"{each:.1f}",
            f"{seconds:.1f}",
            f"{each / seconds:.1f} x",
            f"{seconds / dense:.2f} x",
            f"{made:.0f}",
            f"{formula(plans)} of {sum(len(plan.keep) for plan in plans)}",
            f"{gap:.1e}",
        )
    Console(width=130).print(table)


def smollm2(dtype: str) -> tuple[Any, dict[str, list[Plan]]]:
    """The demo's model; its angular blocks and deepest cuts of every size that keeps the last layer."""
    overrides = [f"outputs={ROOT / 'outputs'}", f"model.dtype={dtype}", "heal=none"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        labs = {
            prune: [
                lab.enter(config.read(compose("config", overrides=[*overrides, f"prune={prune}", f"prune.layers={n}"])))
                for n in range(30)
            ]
            for prune in ("deepest", "block")
        }
    here = labs["block"][0]
    score = Pricing(here)
    plans = {name: [each.experiment.prune(score, each.shape) for each in many] for name, many in labs.items()}
    both = list({plan.drop: plan for plan in [*plans["deepest"], *plans["block"]]}.values())
    return here, {"deepest": plans["deepest"], "deepest and block": both}


def random_7b() -> tuple[Any, dict[str, list[Plan]]]:
    """Llama-2-7B's shape on a GPU, with a tokenizer of bytes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from depthcut.model.pico import byte_tokenizer

    tokens = byte_tokenizer()
    shape = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).eval()
    checkpoint = SimpleNamespace(depth=32, tokenizer=tokens, separator=None)
    cache = ROOT / "outputs/cache"
    here = SimpleNamespace(checkpoint=checkpoint, device="cuda", cache=cache, dense=lambda: model)
    return here, {"deepest": [Plan(32, tuple(range(31 - n, 31))) for n in range(17)]}


def alone(here: Any, plan: Plan, asked: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """One cut through lm-eval's own HFLM: seconds, numbers."""
    start = time.perf_counter()
    with depth.bypass(here.dense(), plan.drop), harness.quiet():
        settings: dict[str, Any] = {"tokenizer": here.checkpoint.tokenizer, "batch_size": asked.batch}
        lm = HFLM(pretrained=here.dense(), device=here.device, softmax_dtype="float32", **settings)
        flat: dict[str, float] = {}
        for task in TASKS:
            results: Any = evaluate(
                lm=lm,
                task_dict=harness.load(task, here.cache),
                limit=asked.limit,
                bootstrap_iters=1000,
                log_samples=False,
            )
            flat |= harness.numbers(results["results"])
    return time.perf_counter() - start, flat


def count_passes() -> Any:
    """Count, from now on, how many sequences go through a layer; a function that says it."""
    counted = {"rows": 0}
    step = walk.Walk.step

    def counting(self: walk.Walk, index: int, h_BTD: torch.Tensor, without: Any = None) -> torch.Tensor:
        counted["rows"] += len(h_BTD)
        return step(self, index, h_BTD, without)

    walk.Walk.step = counting

    def done() -> int:
        walk.Walk.step = step
        return counted["rows"]

    return done


def contexts(here: Any, asked: argparse.Namespace) -> int:
    """How many contexts are read."""
    from depthcut import questions

    return sum(min(asked.limit, len(questions.items(task, here.cache))) for task in TASKS)


def formula(plans: Sequence[Plan]) -> int:
    """Layer passes of blocks that share their dense beginnings: the deepest start, and each tail."""
    starts = [min(plan.drop, default=plan.depth) for plan in plans]
    return max(starts) + sum(plan.depth - max(plan.drop) - 1 for plan in plans if plan.drop)


def apart(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference of a number."""
    return max(abs(one[key] - other[key]) for key in one)


if __name__ == "__main__":
    main()
