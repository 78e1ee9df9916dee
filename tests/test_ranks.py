"""Several processes that share a point heal as one would; they die together and go on together."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from depthcut import ranks
from running import ENVIRONMENT, ROOT, UNHEALED, run, text_files

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
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "run.py"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


def start_two(*arguments: str) -> subprocess.Popen[str]:
    """Start both, as one group of processes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*TWO, *arguments], cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes)


def run_two(*arguments: str) -> str:
    """Run both to their end."""
    process = start_two(*arguments)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def losses(outputs: Path) -> list[float]:
    with next(outputs.glob("main/*/heal.csv")).open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def weights(outputs: Path):
    return load_file(next(outputs.glob("main/*/adapter/*.safetensors")))


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_heal_as_one_does_and_leave_one_record(tmp_path, corpus, strategy):
    one = run(f"outputs={tmp_path}/one", *POINT, *STEPS, *corpus, "heal.micro_batch=4")
    assert one.returncode == 0, one.stderr
    shared = ("heal.micro_batch=1", f"heal.strategy={strategy}")
    said = run_two(f"outputs={tmp_path}/two", *POINT, *STEPS, *corpus, *shared)
    assert said.count("record: ") == 1 and said.count(" tokens a pass") == 1 and said.count("healing:") <= 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=2e-3, rtol=0)
    assert len(list(tmp_path.glob("two/main/*/record.json"))) == 1


@pytest.mark.slow
def test_two_that_were_killed_go_on_to_the_same_weights(tmp_path, corpus):
    point = (*POINT, *LONG, *corpus, "heal.micro_batch=2")
    process = start_two(f"outputs={tmp_path}/killed", *point)
    latest = time.monotonic() + 120
    while not list(tmp_path.glob("killed/main/*/heal/last.ckpt")):
        assert process.poll() is None and time.monotonic() < latest
        time.sleep(0.02)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.communicate()
    assert not list(tmp_path.glob("killed/main/*/adapter"))
    assert "healing goes on from" in run_two(f"outputs={tmp_path}/killed", *point)
    run_two(f"outputs={tmp_path}/peace", *point)
    assert_close(weights(tmp_path / "killed"), weights(tmp_path / "peace"), atol=0, rtol=0)


@pytest.mark.slow
def test_where_one_dies_the_other_ends_too(tmp_path, corpus):
    process = start_two(f"outputs={tmp_path}", *POINT, *LONG, *corpus, "heal.micro_batch=1")
    latest = time.monotonic() + 120
    while not list(tmp_path.glob("main/*/heal/last.ckpt")):
        assert process.poll() is None and time.monotonic() < latest
        time.sleep(0.02)
    psutil.Process(process.pid).children()[-1].kill()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list(tmp_path.glob("main/*/record.json"))


def test_a_micro_batch_that_leaves_a_process_without_work_is_told(tmp_path, corpus):
    process = start_two(f"outputs={tmp_path}", *POINT, *STEPS, *corpus, "heal.micro_batch=4")
    said, _ = process.communicate(timeout=100)
    assert "error: heal.micro_batch must divide heal.batch (4) among 2 processes, got 4" in said


def test_who_started_the_processes(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert (ranks.launcher(), ranks.rank(), ranks.world()) == (None, 0, 1)  # a shell of an allocation
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert (ranks.launcher(), ranks.rank(), ranks.world(), ranks.nodes()) == ("slurm", 1, 2, 1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert (ranks.launcher(), ranks.world()) == (None, 1)
