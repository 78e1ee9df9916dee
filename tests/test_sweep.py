"""A multirun: messages before, for each point and at the end; the files of a failed point."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from depthcut.record import state
from running import UNHEALED, light, run, start, text_files

POINTS = (*UNHEALED, "heal=none", "export=none", "prune=deepest")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


def states(outputs: Path) -> list[str]:
    """Return the states of all points, in the order of their layers."""
    folders = [path.parent for path in outputs.glob("main/*/config.yaml")]
    return sorted(state.point_state(folder) for folder in folders)


def test_failed_point_is_explained_and_sweep_resumes(tmp_path, corpus):
    sweep = ("-m", *POINTS, *corpus, "prune.layers=1,2,3")
    assert run(*sweep, f"outputs={tmp_path}/undisturbed").returncode == 0
    digest = next(tmp_path.glob("undisturbed/main/*/record.json")).parent.name
    outputs = tmp_path / "outputs"
    in_the_way = outputs / "main" / digest / "plan.json"
    in_the_way.mkdir(parents=True)
    done = run(*sweep, f"outputs={outputs}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: 2 of 3 points done, 1 failed, 0 remaining"), done.stderr
    assert states(outputs) == ["done", "done", "failed"]
    failure = json.loads((outputs / "main" / digest / "failure.json").read_text())
    assert failure["reason"].startswith(f"{in_the_way} is damaged (a folder)") and "Traceback" in failure["traceback"]
    assert f"{failure['reason']} ({outputs}/main/{digest}/failure.json)" in done.stderr
    assert "Traceback" not in done.stderr
    in_the_way.rmdir()
    again = run(*sweep, f"outputs={outputs}")
    assert again.returncode == 0, again.stderr
    assert "2 of 3 points already done" in again.stderr
    assert "3 of 3 points done, 0 failed, 0 remaining" in again.stderr
    assert not list(outputs.glob("main/*/failure.json"))


def test_invalid_point_stops_the_sweep_before_running(tmp_path, corpus):
    done = run("-m", f"outputs={tmp_path}", *POINTS, *corpus, "prune.layers=1,8,2")
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("error: prune.layers=8: plan keeps 0 of 8 layers")
    assert lines[-1] == "error: 2 of 3 points done, 1 failed, 0 remaining. Correct the errors above"
    assert states(tmp_path) == ["done", "done"]


def test_option_of_some_choices_is_ignored_for_others(tmp_path, corpus):
    words = ("model=pico", "eval=[loss]", "data=files", "export=none", "prune=deepest", "prune.layers=2", *corpus)
    done = run("-m", f"outputs={tmp_path}", *words, "heal=none,lora", "heal.steps=2", "heal.batch=2")
    assert done.returncode == 0, done.stderr
    assert "heal.steps is not an option of heal=none and is ignored there" in done.stderr
    found = [
        json.loads(path.read_text())["config"]["heal"].get("steps") for path in tmp_path.glob("main/*/record.json")
    ]
    assert sorted(found, key=str) == [2, None]


def test_finished_sweep_loads_nothing(tmp_path, corpus):
    sweep = ("-m", f"outputs={tmp_path}", *POINTS, *corpus, "prune.layers=1,2")
    assert run(*sweep).returncode == 0
    done = light(*sweep)
    assert done.returncode == 0 and "2 of 2 points already done" in done.stderr
    twice = run("-m", f"outputs={tmp_path}", *POINTS, *corpus, "prune.frac=0.25,0.26")
    assert "1 of 1 points already done" in twice.stderr  # both are two layers of eight


def test_all_points_are_listed_during_the_first(tmp_path, corpus):
    process = start("-m", f"outputs={tmp_path}", *POINTS, *corpus, "prune.layers=1,2,3", "eval.loss.batch=1")
    try:
        latest = time.monotonic() + 120
        seen: set[tuple[str, ...]] = set()
        while ("left", "left", "running") not in seen and time.monotonic() < latest and process.poll() is None:
            seen.add(tuple(states(tmp_path)))
            time.sleep(0.02)
        assert ("left", "left", "running") in seen, seen
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        "stopped: 0 of 3 points done, 0 failed, 3 remaining. Run the same command again to continue"
    )
    assert "Traceback" not in next(tmp_path.glob("main/*/run.log")).read_text()
    assert "failed" not in states(tmp_path)
    assert subprocess.run(["find", str(tmp_path), "-name", "failure.json"], capture_output=True).stdout == b""
