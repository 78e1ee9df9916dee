"""The curve launcher writes the records of separate runs with fewer layer passes."""

import importlib
import json
import re

import pytest

from builders import subject, tokens
from comparing import assert_same_records, stable_records
from depthcut.cut import subnetworks
from depthcut.cut.plan import Plan
from pico import pico
from running import ROOT, UNHEALED, run, text_files

SWEEP = ("heal=none", "export=none", "prune=block,deepest", "prune.frac=0,0.2,0.4,0.6")


@pytest.mark.parametrize("base", [(), ("model.quantise=nf4", "model.hidden=64")], ids=["float32", "nf4"])
def test_curve_records_equal_separate_runs(tmp_path, base):
    corpus, tasks = text_files(tmp_path), ("eval=[loss,harness]", "eval.tasks=[capitals]", "eval.limit=8")
    common = ("model=pico", "data=files", *corpus, *tasks, *base)
    alone = run("-m", f"outputs={tmp_path}/alone", *common, *SWEEP)
    shared = run("-m", f"outputs={tmp_path}/shared", *common, *SWEEP, "hydra/launcher=curve")
    assert (alone.returncode, shared.returncode) == (0, 0), shared.stderr
    one, other = stable_records(tmp_path / "alone"), stable_records(tmp_path / "shared")
    assert len(one) == 8
    assert_same_records(one, other)


def test_wider_sweep_computes_only_new_points(tmp_path):
    corpus = text_files(tmp_path)
    common = ("-m", f"outputs={tmp_path}/outputs", *UNHEALED, *corpus, "hydra/launcher=curve")
    first = run(*common, *SWEEP)
    plans = {str(record["plan"]["drop"]) for record in stable_records(tmp_path / "outputs").values()}
    assert f"loss: dense and pruned, {len(plans)} in one pass" in first.stderr, first.stderr
    evaluations = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/cache/evaluations/*/value.json")}
    again = run(*common, *SWEEP)
    assert "8 of 8 points already done" in again.stderr and "in one pass" not in again.stderr
    wider = run(*common, *SWEEP[:-1], "prune.frac=0,0.2,0.5,0.4,0.6")
    assert wider.returncode == 0 and re.search(r"loss: dense and pruned, [12] in one pass", wider.stderr)
    assert all(path.stat().st_mtime_ns == time for path, time in evaluations.items())


def test_healed_points_share_unhealed_measurements(tmp_path):
    corpus = text_files(tmp_path)
    heal = ("heal=lora,none", "heal.steps=4", "heal.warmup=1", "heal.batch=4", "heal.micro_batch=2")
    done = run(
        "-m",
        f"outputs={tmp_path}/outputs",
        *UNHEALED,
        *corpus,
        "prune.frac=0.2,0.4",
        "heal=lora",
        *heal[1:],
        "hydra/launcher=curve",
    )
    assert done.returncode == 0, done.stderr
    found = stable_records(tmp_path / "outputs")
    assert len(found) == 2
    assert all("healed/validation/loss" in record and "pruned/validation/loss" in record for record in found.values())
    whole = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/main/*/record.json")]
    assert all(record["seconds/heal"] > 0 for record in whole)


def test_invalid_point_fails_while_others_are_shared(tmp_path):
    corpus = text_files(tmp_path)
    done = run(
        "-m",
        f"outputs={tmp_path}/outputs",
        *UNHEALED,
        *corpus,
        "heal=none",
        "export=none",
        "prune.frac=0.2,0.4,0.99",
        "hydra/launcher=curve",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: prune.frac=0.99: plan keeps 0 of 8 layers")
    assert done.stderr.splitlines()[-1] == "error: 2 of 3 points done, 1 failed, 0 remaining. Correct the errors above"
    assert len(stable_records(tmp_path / "outputs")) == 2


def test_curve_launcher_needs_multirun(tmp_path):
    line = run("model=pico", "-m", "prune.frac=0.2,0.99", f"outputs={tmp_path}", "metric=none").stderr.splitlines()[-1]
    assert line.startswith("error: metric=none: no such metric")  # and not that -m stands in the wrong place
    done = run(f"outputs={tmp_path}", "model=pico", "hydra/launcher=curve")
    assert done.returncode == 2 and "hydra/launcher=curve only has an effect with -m" in done.stderr


def blocks(*spans: tuple[int, int]) -> list[Plan]:
    return [Plan(8, tuple(range(start, stop))) for start, stop in spans]


@pytest.mark.parametrize(
    ("plans", "layers"),
    [
        (blocks((0, 0), (6, 7), (5, 7), (4, 7), (1, 7)), 8 + 4),  # all keep the last layer
        (blocks((6, 7), (2, 7)), 6 + 2),  # no dense model: nobody goes beyond layer 5
        (blocks((0, 0), (1, 3), (1, 5), (4, 6), (0, 2)), 8 + 5 + 3 + 2 + 6),
        (blocks((2, 4)), 2 + 4),
        (blocks((4, 8), (0, 7)), 4 + 0 + 1),
    ],
    ids=["deepest", "without-dense", "blocks", "one", "ends"],
)
def test_layer_passes_match_the_formula(plans, layers, monkeypatch):
    """Counted on the modules; the head is passed once a cut."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    curve_cost = importlib.import_module("curve_cost")
    model, text = pico("llama", layers=8), tokens((12, 9, 12, 12))
    way = curve_cost.Text(subject(model, text), batch=2, limit=4)
    with curve_cost.counted(model) as made:
        way.shared([subnetworks.subnetwork_from_plan(plan) for plan in plans])
    assert sum(made.layers) == curve_cost.formula(plans) * 4 * 12 == layers * 4 * 12
    assert made.head == len(plans) * 4 * 12
    alone = 0
    for plan in plans:
        with curve_cost.counted(model) as one:
            way.alone(plan)
        alone += sum(one.layers)
    assert alone == sum(8 - len(plan.drop) for plan in plans) * 4 * 12
