"""Cost of the curve: all cuts in one shared pass, compared with separate runs on a model that is loaded once.

python bench/curve_cost.py                     SmolLM2, two tasks, 100 questions each: ten minutes on two cores
python bench/curve_cost.py --every 5           a fifth of the separate runs, scaled: three minutes
python bench/curve_cost.py --loss --limit 4    held-out loss, which projects every position, on 4 sequences
python bench/curve_cost.py --shape llama2_7b   random weights of that shape on a GPU, 17 points: a minute

Separate runs use lm-eval's own HFLM for questions and eval=loss for text. Passes are counted on the modules: 1 is
all input tokens through one layer or through the head. Targets, for questions: `deepest` at most 3 times one
dense HFLM evaluation; `block` and `deepest` together at least 4 times faster than separately; the 7B shape 6 times.
"""

import argparse
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from torch import nn

import subjects
from depthcut.config import build
from depthcut.cut import subnetworks
from depthcut.cut.plan import Plan
from depthcut.data.text.parts import GivenText
from depthcut.eval.harness import Harness
from depthcut.eval.likelihood import lm_eval
from depthcut.eval.loss import Loss
from depthcut.model.decoder import layers as decoder_layers
from depthcut.study import runlog
from depthcut.study.run import open_run
from depthcut.study.scoring import Scoring
from depthcut.study.standalone import Standalone
from scores import show

ROOT = Path(__file__).parents[1]
TASKS = ("capitals", "topics")
HEADS = ["", "cuts", "each, s", "shared, s", "faster", "of one dense", "layers", "formula", "head", "formula", "gap"]
LEGEND = """Layers and head: passes made, and by the formula: to the deepest start, and each tail; the head once a cut.
Each by itself takes {naive} and as many heads. Of questions only the positions that are scored go through the head;
whether the model reads several answers at once is tried first, on a few tokens, which are in the figures.
Gap: the largest difference of a number between the two ways."""
Numbers = dict[str, float]


@dataclass
class Passes:
    """Tokens that went through each layer, and through the head."""

    layers: list[int]
    head: int = 0


def main() -> None:
    """Measure, and print a table."""
    asked = arguments()
    here, sets = of_shape(asked.shape) if asked.shape else smollm2(asked.dtype)
    way = Text(here, asked.batch, asked.limit) if asked.loss else Questions(here, asked.batch, asked.limit)
    alone: dict[tuple[int, ...], tuple[float, Numbers]] = {}
    warm = type(way)(here, asked.batch, 2)
    warm.alone(Plan(here.dense.depth, ()))
    with counted(here.dense.whole()) as once:
        way.shared([subnetworks.FULL])
    lines = [line(name, way, plans, asked.every, alone, once) for name, plans in sets.items()]
    what = f"{asked.limit} sequences of text" if asked.loss else f"{', '.join(TASKS)}: {asked.limit} questions each"
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    show(f"{asked.shape or 'smollm2_135m'}, {what}, {where}", HEADS, lines, asked)
    naive = ", ".join(str(sum(len(plan.keep) for plan in plans)) for plans in sets.values())
    print("\n" + LEGEND.format(naive=naive))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", action="store_true", help="held-out loss instead of questions")
    parser.add_argument("--limit", type=int, default=100, help="questions per task, or sequences")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--every", type=int, default=1, help="measure every n-th cut separately, and scale")
    parser.add_argument("--shape", choices=subjects.SHAPES, help="random weights instead of SmolLM2")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    return parser.parse_args()


def line(
    name: str, way: "Way", plans: list[Plan], every: int, alone: dict[Any, tuple[float, Numbers]], once: Passes
) -> list[str]:
    """Measure one set of cuts both ways."""
    some = plans[::every]
    for plan in some:
        if plan.drop not in alone:
            alone[plan.drop] = way.alone(plan)
    each = sum(alone[plan.drop][0] for plan in some) * len(plans) / len(some)
    asked = [subnetworks.subnetwork_from_plan(plan) for plan in plans]
    with counted(way.here.dense.whole()) as made:
        start = now()
        found = way.shared(asked)
        seconds = now() - start
    pairs = [(alone[plan.drop][1], found[plans.index(plan)]) for plan in some]
    tokens = once.layers[0]
    return [
        name,
        str(len(plans)),
        f"{each:.1f}",
        f"{seconds:.1f}",
        f"{each / seconds:.1f} x",
        f"{seconds / alone[()][0]:.2f} x",
        f"{sum(made.layers) / tokens:.1f}",
        str(formula(plans)),
        f"{made.head / tokens:.1f}",
        str(len(plans)),
        f"{max(abs(one[key] - other[key]) for one, other in pairs for key in one):.1e}",
    ]


def formula(plans: Sequence[Plan]) -> int:
    """Return the layer passes of blocks with a shared dense prefix: up to the deepest start, and each tail."""
    starts = [min(plan.drop, default=plan.depth) for plan in plans]
    return max(starts) + sum(plan.depth - max(plan.drop) - 1 for plan in plans if plan.drop)


@contextmanager
def counted(model: nn.Module) -> Generator[Passes]:
    """Count tokens at each layer's attention, because a layer itself may be bypassed, and at the head."""
    stack = decoder_layers.layer_list(model)
    passes = Passes([0] * len(stack))

    def through(index: int) -> Any:
        def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            h_BTD = args[0] if args else kwargs["hidden_states"]
            passes.layers[index] += h_BTD.shape[:-1].numel()

        return count

    def head(_: nn.Module, args: tuple[Any, ...]) -> None:
        passes.head += args[0].shape[:-1].numel()

    attentions = [layer.get_submodule(decoder_layers.unit_name(layer, "attention")) for layer in stack]
    hooks = [part.register_forward_pre_hook(through(n), with_kwargs=True) for n, part in enumerate(attentions)]
    hooks.append(model.get_output_embeddings().register_forward_pre_hook(head))  # pyright: ignore
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Text:
    """Held-out loss: every position of every cut is projected."""

    here: Any
    batch: int
    limit: int
    text: Any = field(init=False)

    def __post_init__(self) -> None:
        self.text = self.here.texts.validation().first(self.limit)

    def shared(self, asked: Sequence[subnetworks.Subnetwork]) -> list[Numbers]:
        """All cuts together."""
        return Loss(batch=self.batch)(self.here.dense.whole(), Standalone(texts=GivenText(self.text)), asked)

    def alone(self, plan: Plan) -> tuple[float, Numbers]:
        """Measure one cut; return seconds and numbers."""
        with decoder_layers.bypass_layers(self.here.dense.whole(), plan.drop):
            start = now()
            (numbers,) = self.shared([subnetworks.FULL])
            return now() - start, numbers


@dataclass
class Questions:
    """Multiple choice."""

    here: Any
    batch: int
    limit: int

    def shared(self, asked: Sequence[subnetworks.Subnetwork]) -> list[Numbers]:
        """All cuts together."""
        part = Harness(tasks=list(TASKS), limit=self.limit, include_path=None, batch=self.batch)
        return lm_eval.evaluate_tasks(self.here.dense.whole(), self.here, part, asked)

    def alone(self, plan: Plan) -> tuple[float, Numbers]:
        """Measure one cut through lm-eval's own HFLM; return seconds and numbers."""
        here, start = self.here, now()
        flat: Numbers = {}
        with decoder_layers.bypass_layers(here.dense.whole(), plan.drop), lm_eval.quiet_lm_eval():
            settings: dict[str, Any] = {"tokenizer": here.tokenizer, "batch_size": self.batch}
            lm = HFLM(pretrained=here.dense.whole(), device=here.device, softmax_dtype="float32", **settings)
            how: dict[str, Any] = {"limit": self.limit, "bootstrap_iters": lm_eval.BOOTSTRAP, "log_samples": False}
            for task in TASKS:
                results: Any = evaluate(lm=lm, task_dict=lm_eval.load_task(task, here.cache), **how)
                flat |= lm_eval.flat_results(results["results"])
        return now() - start, flat


Way = Text | Questions


def now() -> float:
    """Return the time after synchronising the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def smollm2(dtype: str) -> tuple[Any, dict[str, list[Plan]]]:
    """Return the demo's model, and its angular blocks and deepest cuts of every size that keeps the last layer."""
    overrides = [f"outputs={ROOT / 'outputs'}", f"model.dtype={dtype}", "heal=none"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        runs = {
            prune: [
                open_run(
                    build.build_experiment(
                        compose("config", overrides=[*overrides, f"prune={prune}", f"prune.layers={n}"])
                    )
                )
                for n in range(30)
            ]
            for prune in ("deepest", "block")
        }
    here = runs["block"][0]
    score = Scoring(here)
    plans = {name: [each.experiment.prune(score, each.sizes) for each in many] for name, many in runs.items()}
    both = list({plan.drop: plan for plan in [*plans["deepest"], *plans["block"]]}.values())
    return here, {"deepest": plans["deepest"], "deepest and block": both}


def of_shape(name: str) -> tuple[Any, dict[str, list[Plan]]]:
    """Return a random model with a byte tokenizer, and cuts of up to half of its layers that keep the last one."""
    from depthcut.model.pico import byte_tokenizer

    here = subjects.of_shape(name, None, None)
    here.cache = ROOT / "outputs/cache"
    here.tokenizer, here.separator = byte_tokenizer(), None
    layers = here.dense.depth
    return here, {"deepest": [Plan(layers, tuple(range(layers - 1 - n, layers - 1))) for n in range(layers // 2 + 1)]}


if __name__ == "__main__":
    with runlog.quiet_libraries():
        main()
