"""Every stored sweep is accepted by W&B, composes, and costs what its header says; without a network."""

import itertools
import re
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from composing import ROOT, composed
from depthcut.config import build
from depthcut.config.experiment import Experiment
from depthcut.model.surgery.sizes import ModelSize
from depthcut.report import table

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
NAMES = [path.stem for path in FILES]

# What W&B's server checks, of the kinds of parameter that a grid has (PyPI's `sweeps`, schema.json).
SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean"]}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "project": {"const": "depthcut"},
        "name": {"type": "string"},
        "program": {"const": "run.py"},
        "method": {"const": "grid"},
        "command": {"type": "array", "items": {"type": "string", "pattern": r"^\S+$"}},
        "parameters": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_.-]*$"},
            "additionalProperties": {
                "type": "object",
                "properties": {"values": {"type": "array", "items": SCALAR, "minItems": 2, "uniqueItems": True}},
                "required": ["values"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["project", "name", "program", "method", "command", "parameters"],
    "additionalProperties": False,
}

# Layers, and billions of parameters in one and in the head.
SHAPES = {
    "Llama-2-7b-hf": (32, 0.2024, 0.131),
    "Llama-2-13b-hf": (40, 0.3172, 0.164),
    "Llama-2-70b-hf": (80, 0.8556, 0.262),
    "Mistral-7B-v0.1": (32, 0.2181, 0.131),
    "phi-2": (32, 0.0786, 0.131),
    "Qwen3-8B-Base": (36, 0.1930, 0.622),
    "llama-7b": (32, 0.2024, 0.131),
    "vicuna-7b-v1.3": (32, 0.2024, 0.131),
    "vicuna-13b-v1.3": (40, 0.3172, 0.164),
    "smollm2": (30, 0.0035, 0.028),
}
# Millions of tokens that a model reads for a task.
QUESTIONS = {"mmlu@5": 10, "boolq": 0.6, "hellaswag": 4.5, "piqa": 0.3, "winogrande": 0.1}
QUESTIONS |= {"arc_easy": 0.6, "arc_challenge": 0.4, "openbookqa": 0.1}
QUESTIONS |= {"capitals": 0.02, "topics": 0.1, "openbookqa_local": 0.05, "piqa_local": 0.05}  # 500 items at most
WINDOWS = {"wikitext2": 0.34, "ptb": 0.1}  # of the texts of eval=perplexity
RATE = 4e14  # operations a second of one H100: docs/wandb.md
PACE = 0.9e-3  # seconds a layer and token that one H100 writes, at any batch size of eval=speed, in 16 bits: measured
REST = 300  # seconds a run for starting, loading and saving


@cache
def sweep(name: str) -> Any:
    return yaml.safe_load((ROOT / f"sweeps/{name}.yaml").read_text())


def fixed(sweep: Any) -> list[str]:
    return [each for each in sweep["command"] if not each.startswith("${")]


def grid(sweep: Any) -> list[tuple[str, ...]]:
    parameters = sweep["parameters"]
    values = itertools.product(*(each["values"] for each in parameters.values()))
    return [tuple(f"{key}={value}" for key, value in zip(parameters, point, strict=True)) for point in values]


@cache
def points(name: str) -> list[Experiment]:
    """Compose every point of the grid as run.py does."""
    return [build.build_experiment(composed(*fixed(sweep(name)), *point)) for point in grid(sweep(name))]


@pytest.mark.parametrize("name", NAMES)
def test_wandb_accepts_it(name):
    jsonschema.validate(sweep(name), SCHEMA)


@pytest.mark.parametrize("name", NAMES)
def test_command_is_run_py_with_agent_arguments(name):
    command = sweep(name)["command"]
    assert command[:3] == ["${env}", "${interpreter}", "${program}"] and command[-1] == "${args_no_hyphens}"
    assert {"log=wandb", f"name={name}"} <= set(command) and sweep(name)["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_points_compose_and_are_distinct(name):
    found = [x.composed for x in points(name)]
    assert len(found) == len(grid(sweep(name)))
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert all((x.name, type(x.log).__name__, x.log.project) == (name, "Wandb", "depthcut") for x in points(name))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in NAMES if "prune.frac" in sweep(name)["parameters"]])
def test_fractions_give_distinct_layer_counts(name):
    per_method: dict[Any, list[int]] = {}
    for x in points(name):
        rest = {key: value for key, value in x.composed["prune"].items() if key != "frac"}
        key = str((x.composed["model"], x.composed["metric"], x.composed["replace"], type(x.heal), rest))
        asked: Any = x.heal  # a width has a separate fraction
        per_method.setdefault(key, []).append(round(asked.frac * shape(x)[0]) if width(x) else count(x))
    assert all(counts == sorted(set(counts)) and counts[0] > 0 for counts in per_method.values())


@pytest.mark.parametrize("name", NAMES)
def test_header_has_command_cost_and_expectation(name):
    head = (ROOT / f"sweeps/{name}.yaml").read_text().partition("project:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"wandb sweep sweeps/{name}.yaml\n" in head and "wandb agent" in head and "# Expect" in head
    runs, hours, unit = re.findall(r"^# (\d+) runs, about ([\d.]+) (CPU|GPU)-hours", head, re.MULTILINE)[0]
    assert int(runs) == len(grid(sweep(name)))
    if unit == "GPU":
        found = points(name)
        dense = sum(timed(x, shape(x)[0]) for x in found[:1] if "dense" in x.stages)  # once for all points
        assert float(hours) == pytest.approx((dense + sum(map(seconds, found))) / 3600, rel=0.1)


def width(x: Experiment) -> bool:
    """Tell whether the point removes the parameters of a layer cut, but no layer."""
    return getattr(x.heal, "frac", None) is not None


def count(x: Experiment) -> int:
    return x.prune.count(ModelSize(shape(x)[0]))


def shape(x: Experiment) -> tuple[int, float, float]:
    return SHAPES[table.model_name({"config": x.composed})]


def seconds(x: Experiment) -> float:
    """Estimate a run on one H100: healing with recomputation passes all weights three times, an evaluation once."""
    layers, of_layer, of_head = shape(x)
    left = layers - count(x)
    passed = layers if type(x.replace).__name__ == "Shared" else left
    parameters = 1e9 * (passed * of_layer + of_head)
    stages = ("pruned" in x.stages) + (x.heal.trains and "healed" in x.stages)
    length = x.heal.length if x.heal.trains else 0  # type: ignore[attr-defined]
    operations = (6 * x.heal.sequences * length + 2 * stages * asked(x)) * parameters
    return operations / RATE + stages * timed(x, passed) + REST


def asked(x: Experiment) -> float:
    """Return the tokens that the evaluation of a stage reads."""
    evaluations: Any = x.eval
    tasks = evaluations["harness"].tasks if "harness" in evaluations else []
    named = evaluations["perplexity"].named if "perplexity" in evaluations else []
    loss = 2000 * x.data.validation.length if "loss" in evaluations else 0
    return 1e6 * (sum(QUESTIONS[task] for task in tasks) + sum(WINDOWS[name] for name in named)) + loss


def timed(x: Experiment, layers: int) -> float:
    """Return the seconds of eval=speed per stage."""
    speed: Any = x.eval.get("speed")
    return len(speed.batches) * (speed.warm_up + speed.runs) * speed.tokens * layers * PACE if speed else 0


def test_invalid_sweeps_are_detected():
    good = sweep("smollm2")
    for wrong in (
        good | {"methods": "grid"},
        good | {"method": "gird"},
        good | {"command": [*good["command"], "two words"]},
        good | {"parameters": {"prune.frac": {"value": [0.1]}}},
        good | {"parameters": {"data/train": {"values": ["hub", "c4"]}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)
    for wrong in ("prune.fraction=0.1", "model=lama", "prune.frac=1.5"):
        with pytest.raises(Exception, match=r"prune|lama"):
            build.build_experiment(composed(*fixed(good), wrong))


def test_docs_page_names_every_sweep():
    page = (ROOT / "docs/wandb.md").read_text()
    assert sorted(set(re.findall(r"sweeps/(\w+)\.yaml", page))) == NAMES
    assert f"{RATE:.0e}".replace("+", "") in page


def test_continued_pretraining_matches_the_papers_sizes():
    found = points("shortened_llama_cpt")
    sizes = [layers * of_layer + 2 * of_head for layers, of_layer, of_head in map(left, found)]
    assert sizes == pytest.approx([5.5, 3.7, 2.7, 1.5], abs=0.05)
    for x in found:
        heal: Any = x.heal
        assert type(heal).__name__ == "Full" and heal.sequences * heal.length == pytest.approx(37e9, rel=1e-3)
        assert (heal.batch, heal.lr, heal.betas, heal.weight_decay) == (512, 1e-4, (0.9, 0.95), 0.1)


def left(x: Experiment) -> tuple[int, float, float]:
    """The same without the dropped layers."""
    layers, of_layer, of_head = shape(x)
    return layers - count(x), of_layer, of_head
