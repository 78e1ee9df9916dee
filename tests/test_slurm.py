"""Sweeps on a real single-node SLURM (tests/slurm_up.sh): no failure of a job or a launcher loses a point."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from omegaconf import OmegaConf

from composing import ROOT, composed
from depthcut.cli.point import run_point
from depthcut.config import build
from depthcut.config.methods import construct_validated
from depthcut.record import state
from depthcut.study.run import open_run
from depthcut.study.slurm import queue, squeue
from depthcut.study.slurm.job import JobRequest, PointTask
from running import PICO, UNHEALED, light, run, start, text_files

CONF = "/var/lib/depthcut-slurm/slurm.conf"
LAUNCHER = (
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.gpus_per_node=0",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.timeout_min=30",
)
SHORT = ("prune=deepest", "export=none", "data.validation.sequences=8")
POINTS = (*UNHEALED, *SHORT, "heal=none", "stages=[pruned]")
HEALED = (*PICO, *SHORT, "stages=[healed]", "heal.steps=40", "heal.save_every=2", "heal.dropout=0.2")


def asked(*call: str) -> str:
    """Return the output of a SLURM command."""
    plain = {**os.environ, "SLURM_CONF": CONF}
    return subprocess.run(call, check=True, capture_output=True, text=True, timeout=60, env=plain).stdout


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a sweep on the tests' own cluster, and never on a real one."""
    if not Path(CONF).exists() or not shutil.which("sinfo"):
        pytest.skip("no SLURM of the tests' own: as root, tests/slurm_up.sh starts one")
    try:
        asked("sinfo")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the tests' own SLURM does not answer: {error.stderr}")
    processes: list[subprocess.Popen[str]] = []

    def launch(outputs: Path, *arguments: str) -> subprocess.Popen[str]:
        processes.append(start("-m", f"outputs={outputs}", *LAUNCHER, *arguments, SLURM_CONF=CONF))
        return processes[-1]

    yield launch
    for process in processes:
        with process:
            process.kill()
    asked("scancel", "--me")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return the exit status and the output."""
    _, err = process.communicate(timeout=600)
    return process.returncode, err


def until(what: Callable[[], object], *processes: subprocess.Popen[str]) -> None:
    """Wait until ``what`` holds; no process may end before that."""
    latest = time.monotonic() + 200
    while not what():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < latest
        time.sleep(0.02)


def folder(outputs: Path, *arguments: str) -> Path:
    """Return the future folder of a point."""
    return open_run(build.build_experiment(composed(f"outputs={outputs}", *arguments))).folder


def job(folder: Path) -> str:
    """Return the id of a point's job, once it is recorded."""
    until(lambda: (ticket := queue.JobRecord.read(folder)) and ticket.job)
    return str(json.loads((folder / "job.json").read_text())["job"])


def reason(folder: Path) -> str:
    """Return why a point failed."""
    failure = state.read_failure(folder)
    assert failure is not None
    return failure["reason"]


def arrays(outputs: Path) -> list[Path]:
    """Return the submitted job arrays."""
    return [path for path in outputs.glob("*/.slurm/*") if path.is_dir()]


def log(outputs: Path, number: str, task: int = 0) -> str:
    """Return the log of a task."""
    return "".join(path.read_text() for path in outputs.glob(f"*/.slurm/*/{number}_{task}_log.out"))


def test_yaml_has_every_field_of_the_request():
    stored = yaml.safe_load((ROOT / "conf/hydra/launcher/slurm.yaml").read_text())
    knobs = {key: value for key, value in stored.items() if not key.startswith("_")}
    assert isinstance(construct_validated("hydra.launcher", JobRequest, knobs), JobRequest)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("hydra.launcher.timeout_min=0", "hydra.launcher.timeout_min must be in [1, 1000000], got 0"),
        ("hydra.launcher.timeout=5", "hydra.launcher.timeout: no such key. Did you mean timeout_min? Available: "),
        ("+hydra.launcher.timeout=5", "hydra.launcher.timeout: no such key. Did you mean timeout_min? Available: "),
        ("hydra.launcher.mem_gb=64G", "hydra.launcher.mem_gb must be a number in [0.001, 100000], got '64G'"),
        ("hydra.launcher.signal_delay_s=1800", "hydra.launcher.signal_delay_s must be below the time limit of 1800 s"),
        ("+hydra.launcher.additional_parameters.job_name=x", "hydra.launcher.additional_parameters.job-name: the laun"),
    ],
)
def test_invalid_request_fails_in_one_line_before_loading(tmp_path, said, line):
    done = light("-m", f"outputs={tmp_path}", *LAUNCHER, "prune.layers=1,2", said)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {line}") and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_missing_sbatch_is_reported_in_one_line(tmp_path):
    done = run("-m", f"outputs={tmp_path}", *LAUNCHER, "prune.layers=1,2", PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: hydra/launcher=slurm: sbatch is not on the PATH")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_job_that_cannot_start_records_the_reason(tmp_path):
    config = OmegaConf.to_container(composed(f"outputs={tmp_path}", "model=pico"), resolve=True)
    work = PointTask(run_point, tmp_path / "point", [{**config, "name": "no/name"}])
    with pytest.raises(ValueError, match="name must be letters"):
        work()
    assert reason(tmp_path / "point").startswith("name must be letters")


def test_queue_is_parsed_from_squeue():
    lines = ["26_3|RUNNING|main-1f|None", "27|PENDING|other-2a|Nodes required | are DOWN", "28_[5-7%2]|PENDING|x-1|a"]
    found = squeue.parse_queue(lines)
    assert found == {
        ("main-1f", 3): squeue.QueueEntry("26_3", "RUNNING", "None"),
        ("other-2a", 0): squeue.QueueEntry("27", "PENDING", "Nodes required | are DOWN"),
    }
    assert not squeue.QueueEntry("1", "OUT_OF_MEMORY", "").alive and squeue.QueueEntry("1", "REQUEUE_HOLD", "").alive


@pytest.mark.slow
def test_six_points_end_with_six_records(tmp_path, corpus, launch):
    sweep = (*POINTS, *corpus, "prune.layers=1,2,3,4,5,6")
    refused, line = end(launch(tmp_path, *sweep, "hydra.launcher.partition=nowhere"))
    assert refused == 2 and line.splitlines()[-1].startswith("error: SLURM refused the jobs: ") and "partition" in line
    assert not list(tmp_path.glob("main/*/job.json")) and not arrays(tmp_path)
    status, said = end(launch(tmp_path, *sweep))
    assert status == 0, said
    assert "slurm: 6 submitted as job " in said and "6 of 6 points done, 0 failed, 0 remaining" in said
    records = [json.loads(path.read_text()) for path in tmp_path.glob("main/*/record.json")]
    assert sorted(each["plan"]["drop"][0][0] for each in records) == [1, 2, 3, 4, 5, 6]
    assert len({job(path.parent) for path in tmp_path.glob("main/*/record.json")}) == 6
    status, said = end(launch(tmp_path, *sweep))
    assert status == 0 and "6 of 6 points already done" in said
    assert len(arrays(tmp_path)) == 1


@pytest.mark.slow
def test_failed_killed_preempted_or_requeued_point_is_isolated(tmp_path, corpus, launch):
    """Points that were requeued end with the weights of an undisturbed run."""
    sweep, outputs = (*HEALED, *corpus), tmp_path / "outputs"
    preempted, requeued, killed, wrong = (folder(outputs, *sweep, f"seed={seed}") for seed in range(4))
    in_the_way = wrong / "plan.json"
    in_the_way.mkdir(parents=True)
    launcher = launch(outputs, *sweep, "seed=0,1,2,3")
    left = {preempted: ("scancel", "--signal=USR2"), requeued: ("scontrol", "requeue"), killed: ("scancel", "-sKILL")}

    def disturbed() -> bool:
        for point in [point for point in left if (point / "heal/last.ckpt").exists()]:
            asked(*left.pop(point), job(point))
        return not left

    until(disturbed, launcher)
    undisturbed = run("-m", f"outputs={tmp_path}/undisturbed", *sweep, "seed=0,1")
    assert undisturbed.returncode == 0, undisturbed.stderr
    status, said = end(launcher)
    assert status == 1 and "Traceback" not in said
    assert "error: 2 of 4 points done, 2 failed, 0 remaining" in said.splitlines()[-1], said
    logs = rf"{outputs}/main/.slurm/\S+_0_log.out"
    lost = rf"SLURM job {job(killed)} ended with state [A-Z]+ without a record; its log: {logs}"
    assert re.fullmatch(lost, reason(killed)) and reason(killed) in said
    assert reason(wrong).startswith(f"{in_the_way} is damaged (a folder)")
    assert "DamagedError" in log(outputs, job(wrong))
    assert f"that was job {job(wrong)}; its log: {outputs}/main/.slurm" in said
    for point in (preempted, requeued):
        assert "healing resumes at step" in log(outputs, job(point))
        adapters = [
            each / "adapter/adapter_model.safetensors" for each in (point, tmp_path / "undisturbed/main" / point.name)
        ]
        assert adapters[0].read_bytes() == adapters[1].read_bytes()
    in_the_way.rmdir()
    status, said = end(launch(outputs, *sweep, "seed=0,1,2,3"))
    assert status == 0 and "slurm: 2 submitted" in said, said
    assert "healing resumes at step" in log(outputs, job(killed)) and not list(outputs.glob("main/*/failure.json"))


@pytest.mark.slow
def test_timed_out_point_is_requeued_or_failed(tmp_path, corpus, launch):
    """The limit is real. One point waits for a lock until it is requeued; the other never ends and may not be."""
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10", *HEALED, *corpus)
    endless = (*limit, "heal.steps=100000", "name=endless", "hydra.launcher.max_timeouts=0")
    failing = launch(tmp_path, *endless)
    waiting = folder(tmp_path, *HEALED, *corpus)
    waiting.mkdir(parents=True)
    with FileLock(state.lock_path(waiting)):
        launcher = launch(tmp_path, *limit)
        until(lambda: "Requeued job" in log(tmp_path, job(waiting)), launcher)
    status, said = end(failing)
    assert status == 1 and "0 of 1 points done, 1 failed, 0 remaining" in said, said
    (failed,) = (path.parent for path in tmp_path.glob("endless/*/failure.json"))
    assert reason(failed) == "UncompletedJobError: Job not requeued because: timed-out too many times."
    assert "Requeued job" not in log(tmp_path, job(failed)) and (failed / "heal/last.ckpt").exists()
    status, said = end(launcher)
    assert status == 0 and "1 of 1 points done, 0 failed, 0 remaining" in said, said


@pytest.mark.slow
def test_several_dying_launchers_and_silent_slurm(tmp_path, corpus, launch):
    """The points' locks are held by the test, so no job ends before everything was seen."""
    sweep = (*POINTS, *corpus, "prune.layers=1,2,3")
    folders = [folder(tmp_path, *POINTS, *corpus, f"prune.layers={layers}") for layers in (1, 2, 3)]
    with ExitStack() as held:
        for each in folders:
            each.mkdir(parents=True)
            held.enter_context(FileLock(state.lock_path(each)))
        first, second = (launch(tmp_path, *sweep) for _ in range(2))
        array, *others = {job(each).partition("_")[0] for each in folders}
        assert not others
        first.kill()
        again = launch(tmp_path, *sweep)
        assert again.stderr.readline() == f"slurm: 3 already in the queue, as job {array}\n"
        more = launch(tmp_path, *sweep[:-1], "prune.layers=1", "stages=[dense,pruned]")
        assert "1 already in the queue" in more.stderr.readline()
        os.kill(int(Path(CONF).with_name("slurmctld.pid").read_text()), signal.SIGTERM)
        said = iter(again.stderr.readline, "")
        assert any("squeue failed, " in line for line in said)
        subprocess.run([ROOT / "tests/slurm_up.sh"], check=True)
        second.send_signal(signal.SIGINT)
        status, said = end(second)
        assert status == 130 and f"the jobs continue; to cancel them: scancel {array}" in said
    status, said = end(again)
    assert status == 0 and "3 of 3 points done" in said, said
    status, said = end(more)
    assert status == 0 and "slurm: 1 submitted" in said, said
    assert len(arrays(tmp_path)) == 2


@pytest.mark.slow
def test_tasks_of_a_job_share_one_point(tmp_path, corpus, launch):
    """The launcher need not wait for it."""
    sweep = (*POINTS, *corpus, "prune.layers=2", "hydra.launcher.tasks_per_node=2", "hydra.launcher.gpus_per_node=2")
    status, said = end(launch(tmp_path, *sweep, "hydra.launcher.wait=false"))
    assert status == 0 and "the jobs continue; run the same command again to follow them" in said
    status, said = end(launch(tmp_path, *sweep))
    assert status == 0 and "1 of 1 points done" in said, said
    (point,) = (path.parent for path in tmp_path.glob("main/*/record.json"))
    assert [f"local_rank={task}(2)" in log(tmp_path, job(point), task) for task in (0, 1)] == [True, True]
    assert [log(tmp_path, job(point), task).count("record: ") for task in (0, 1)] == [1, 0]
    assert len(arrays(tmp_path)) == 1
