"""The shared pass leaves the records that each point alone leaves, and works less for them."""

import json
import re
from pathlib import Path

import pytest

from running import UNHEALED, run, text_files

SWEEP = ("heal=none", "export=none", "prune=block,deepest", "prune.frac=0,0.2,0.4,0.6")


def records(outputs: Path) -> dict[str, dict]:
    """By digest, without what depends on the moment."""
    found = {path.parent.name: json.loads(path.read_text()) for path in outputs.glob("main/*/record.json")}
    aside = ("seconds/", "bytes/", "finished", "config")
    return {
        digest: {key: value for key, value in record.items() if not key.startswith(aside)}
        for digest, record in found.items()
    }


@pytest.mark.parametrize("base", [(), ("model.quantise=nf4", "model.hidden=64")], ids=["float32", "nf4"])
def test_the_records_are_those_of_each_point_alone(tmp_path, base):
    corpus, tasks = text_files(tmp_path), ("eval=[loss,harness]", "eval.tasks=[capitals]", "eval.limit=8")
    common = ("model=pico", "data=files", *corpus, *tasks, *base)
    alone = run("-m", f"outputs={tmp_path}/alone", *common, *SWEEP)
    shared = run("-m", f"outputs={tmp_path}/shared", *common, *SWEEP, "hydra/launcher=curve")
    assert (alone.returncode, shared.returncode) == (0, 0), shared.stderr
    one, other = records(tmp_path / "alone"), records(tmp_path / "shared")
    assert one.keys() == other.keys() and len(one) == 8
    for digest, record in one.items():
        assert record.keys() == other[digest].keys()
        for key, value in record.items():
            assert other[digest][key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key


def test_a_second_time_nothing_is_computed_and_a_wider_sweep_computes_the_rest(tmp_path):
    corpus = text_files(tmp_path)
    common = ("-m", f"outputs={tmp_path}/outputs", *UNHEALED, *corpus, "hydra/launcher=curve")
    first = run(*common, *SWEEP)
    plans = {str(record["plan"]["drop"]) for record in records(tmp_path / "outputs").values()}
    assert f"loss: {len(plans)} models without some layers, in one pass" in first.stderr, first.stderr
    evaluations = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/cache/evaluations/*/value.json")}
    again = run(*common, *SWEEP)
    assert "8 of 8 points are done already" in again.stderr and "in one pass" not in again.stderr
    wider = run(*common, *SWEEP[:-1], "prune.frac=0,0.2,0.5,0.4,0.6")
    assert wider.returncode == 0 and re.search(r"loss: [12] models? without some layers, in one pass", wider.stderr)
    assert all(path.stat().st_mtime_ns == time for path, time in evaluations.items())


def test_healed_points_share_what_comes_before_the_healing(tmp_path):
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
    found = records(tmp_path / "outputs")
    assert len(found) == 2
    assert all("healed/validation/loss" in record and "pruned/validation/loss" in record for record in found.values())


def test_a_point_with_a_mistake_tells_of_it_and_the_others_are_shared(tmp_path):
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
    assert done.stderr.splitlines()[-1].startswith("error: 2 of 3 points are done, 1 failed, 0 are left; the same")
    assert len(records(tmp_path / "outputs")) == 2


def test_the_launcher_needs_a_multirun(tmp_path):
    line = run("model=pico", "-m", "prune.frac=0.2,0.99", f"outputs={tmp_path}", "metric=none").stderr.splitlines()[-1]
    assert line.startswith("error: metric=none: no such metric")  # and not that -m stands in the wrong place
    done = run(f"outputs={tmp_path}", "model=pico", "hydra/launcher=curve")
    assert done.returncode == 2 and "hydra/launcher=curve has an effect with -m only" in done.stderr
