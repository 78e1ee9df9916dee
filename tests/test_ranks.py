"""Several processes heal a point as one would; they fail together and resume together."""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from depthcut.runtime import ranks
from running import UNHEALED, run, run_torchrun, start_torchrun, text_files

POINT = (
    *UNHEALED,
    "prune=deepest",
    "prune.layers=2",
    "export=adapter",
    "heal.warmup=1",
    "heal.batch=4",
    "heal.lr=0.01",
)
STEPS, LONG = ("heal.steps=6", "heal.save_every=2"), ("heal.steps=60", "heal.save_every=5", "heal.dropout=0.1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


def losses(outputs: Path) -> list[float]:
    with next(outputs.glob("main/*/heal.csv")).open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def weights(outputs: Path):
    return load_file(next(outputs.glob("main/*/adapter/*.safetensors")))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, corpus) -> Path:
    """Return the result of one process."""
    outputs = tmp_path_factory.mktemp("alone")
    one = run(f"outputs={outputs}", *POINT, *STEPS, *corpus, "heal.micro_batch=4", "export=merged")
    assert one.returncode == 0, one.stderr
    return outputs


def numbers(outputs: Path) -> dict[str, float]:
    """Return a record's numbers about the model, without those about the run."""
    record = json.loads(next(outputs.glob("main/*/record.json")).read_text())
    return {key: each for key, each in record.items() if "/" in key and not key.startswith(("seconds/", "bytes/peak"))}


@pytest.mark.parametrize(
    "how",
    [
        ("export=none",),
        pytest.param(("export=none", "heal.strategy=fsdp"), marks=pytest.mark.slow),
        pytest.param(("export=merged", "heal.strategy=fsdp", "stream=always"), marks=pytest.mark.slow),
    ],
    ids=["copies", "shares", "shares all the time"],
)
def test_two_processes_heal_like_one_with_one_record(tmp_path, corpus, alone, how):
    said = run_torchrun(f"outputs={tmp_path}", *POINT, *STEPS, *corpus, "heal.micro_batch=1", *how)
    assert said.count("record: ") == 1 and said.count(" tokens per pass") == 1 and said.count("healing:") <= 2
    assert said.count("each of 2 processes holds a shard") == 2 * ("stream=always" in how)  # dense, pruned
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=2e-4)
    assert_close(weights(tmp_path), weights(alone), atol=2e-3, rtol=0)
    assert [each.parent.name for each in tmp_path.glob("main/*/record.json")] == [
        each.parent.name for each in alone.glob("main/*/record.json")
    ]
    assert numbers(tmp_path) == pytest.approx(numbers(alone), rel=1e-4)
    if "export=merged" in how:
        assert_close(exported(tmp_path), exported(alone), atol=1e-4, rtol=0)


def exported(outputs: Path) -> dict[str, Any]:
    """Return the exported weights as transformers reads them."""
    folder = next(outputs.glob("main/*/model"))
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).state_dict()


@pytest.mark.slow
def test_two_killed_processes_resume_to_the_same_weights(tmp_path, corpus):
    point = (*POINT, *LONG, *corpus, "heal.micro_batch=2")
    process = start_torchrun(f"outputs={tmp_path}/killed", *point)
    latest = time.monotonic() + 120
    while not list(tmp_path.glob("killed/main/*/heal/last.ckpt")):
        assert process.poll() is None and time.monotonic() < latest
        time.sleep(0.02)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.communicate()
    assert not list(tmp_path.glob("killed/main/*/adapter"))
    assert "healing resumes at step" in run_torchrun(f"outputs={tmp_path}/killed", *point)
    run_torchrun(f"outputs={tmp_path}/undisturbed", *point)
    assert_close(weights(tmp_path / "killed"), weights(tmp_path / "undisturbed"), atol=0, rtol=0)


@pytest.mark.slow
def test_one_dying_process_ends_the_other(tmp_path, corpus):
    process = start_torchrun(f"outputs={tmp_path}", *POINT, *LONG, *corpus, "heal.micro_batch=1")
    latest = time.monotonic() + 120
    while not list(tmp_path.glob("main/*/heal/last.ckpt")):
        assert process.poll() is None and time.monotonic() < latest
        time.sleep(0.02)
    psutil.Process(process.pid).children()[-1].kill()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list(tmp_path.glob("main/*/record.json"))


def test_micro_batch_that_idles_a_process_is_refused(tmp_path, corpus):
    process = start_torchrun(f"outputs={tmp_path}", *POINT, *STEPS, *corpus, "heal.micro_batch=4")
    said, _ = process.communicate(timeout=100)
    assert "error: heal.micro_batch must divide heal.batch (4) among 2 processes, got 4" in said


def test_launcher_is_read_from_the_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert (ranks.launcher(), ranks.global_rank(), ranks.world_size()) == (None, 0, 1)  # a shell inside an allocation
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert (ranks.launcher(), ranks.global_rank(), ranks.world_size(), ranks.node_count()) == ("slurm", 1, 2, 1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert (ranks.launcher(), ranks.world_size()) == (None, 1)
