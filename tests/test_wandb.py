"""The real W&B client, sweep and agent, online against a stand-in on localhost."""

import io
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml

from depthcut.report import figures, study
from running import PICO, ROOT, run, start, text_files
from standins.wandb import Run, Server, serve
from wandb_client import NOWHERE, begun, client, tool

STEPS = list(range(1, 61))
HEAL = ("heal.steps=60", "heal.save_every=5")


@dataclass(frozen=True)
class Finished:
    """A finished point that was logged."""

    home: Any
    command: Any
    folder: Any
    record: Any


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as server:
        yield server
        assert server.unknown == []


@pytest.fixture(scope="module")
def point(tmp_path_factory, server) -> Finished:
    """Kill a point during healing, then finish it with the same command, online."""
    home = tmp_path_factory.mktemp("online")
    command = (f"outputs={home}/outputs", *PICO, *HEAL, *text_files(home), "log=wandb", "export=none")
    online = client(home, server.url)
    process = start(*command, "prune.frac=0.25", **online)
    while not list(home.glob("outputs/main/*/heal.csv")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(home.glob("outputs/main/*/record.json"))
    done = run(*command, "prune.frac=0.25", **online)
    assert done.returncode == 0, done.stderr
    (path,) = home.glob("outputs/main/*/record.json")
    return Finished(home=home, command=command, folder=path.parent, record=json.loads(path.read_text()))


def steps(told: Run) -> list[int]:
    """Return the logged healing steps in order."""
    return [row["heal/step"] for row in told.rows if "heal/step" in row]


def pictures(told: Run) -> dict[str, list[bytes]]:
    """Return the logged figures by name: the file of each row."""
    found: dict[str, list[bytes]] = {}
    for row in told.rows:
        for name, media in row.items():
            if name.startswith("report/"):
                assert media["_type"] == "image-file"
                found.setdefault(name, []).append(told.files[media["path"]])
    return found


def test_killed_and_repeated_run_is_one_run(point, server):
    told = server.runs[point.record["digest"]]
    rows = [(row["heal/step"], row["heal/loss"]) for row in told.rows if "heal/step" in row]
    assert sorted({step for step, _ in rows}) == STEPS
    losses = dict(rows)  # rows logged before the kill and again after it are equal
    assert [loss for _, loss in rows] == pytest.approx([losses[step] for step, _ in rows])
    assert told.summary["healed/validation/loss"] == point.record["healed/validation/loss"]
    assert told.exit_code == 0 and told.about["groupName"] == "main"
    assert json.loads(told.files["plan.json"]) == point.record["plan"]


def test_agent_runs_command_and_finished_point_reports_immediately(point, server):
    sweep = yaml.safe_load((ROOT / "sweeps/smollm2.yaml").read_text())
    mine = [each for each in sweep["command"] if not each.startswith(("model=", "name="))]
    mine[-1:-1] = [each for each in point.command if each not in mine]
    sweep |= {"command": mine, "parameters": {"prune": {"value": "block"}, "prune.frac": {"values": [0.25, 0.5]}}}
    file = point.home / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    before = (point.folder / "record.json").stat().st_mtime_ns
    tool(server.url, point.home, "sweep", str(file))
    (name,) = server.sweeps
    tool(server.url, point.home, "agent", f"tester/depthcut/{name}")
    again, new = (server.runs[drawn] for drawn in server.sweeps[name].drawn)
    assert (point.folder / "record.json").stat().st_mtime_ns == before
    assert again.summary["healed/validation/loss"] == point.record["healed/validation/loss"]
    assert steps(again) == steps(new) == STEPS
    assert (again.summary["fraction"], new.summary["fraction"]) == (0.25, 0.5)
    assert (again.config["digest"], again.config["prune.frac"]) == (point.record["digest"], 0.25)
    assert (new.config["prune"], new.config["prune.frac"], new.config["prune.keep_last"]) == ("block", 0.5, 1)
    assert new.config["digest"] in {path.parent.name for path in point.home.glob("outputs/main/*/record.json")}
    assert {each.about["sweep"] for each in (again, new)} == {name}
    assert again.exit_code == new.exit_code == 0
    assert new.config["digest"] not in server.runs  # the agent's name is its only one


def drawn(name: str, point: Finished, url: str, **more: str) -> dict[str, str]:
    """Return the environment in which an agent starts its runs."""
    return {**client(point.home, url), "WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": name, **more}


def test_finished_point_is_reported_without_torch(point, server):
    environment = drawn("light", point, server.url, PYTHONPROFILEIMPORTTIME="1")
    done = run(*point.command, "prune.frac=0.25", **environment)
    assert done.returncode == 0 and server.runs["light"].summary["fraction"] == 0.25
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "wandb" in imported and not imported & {"torch", "transformers", "lightning", "peft"}


@pytest.mark.parametrize(
    ("name", "key", "status"),
    [("short", "0123", 200), ("refused", "", 401), pytest.param("away", "", 0, marks=pytest.mark.slow)],
)
def test_run_continues_offline_without_a_server(name, key, status, point, server):
    broken = {"WANDB_API_KEY": key} if key else {}
    server.status = status or 200
    url = server.url if status else NOWHERE
    environment = drawn(name, point, url, WANDB_HTTP_TIMEOUT="1", **broken)
    done = run(*point.command, "prune.frac=0.25", "log.wait=1", **environment)
    server.status = 200
    assert done.returncode == 0, done.stderr
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("W&B: "))
    assert said.endswith(f"this run stays offline, upload it with wandb sync {point.folder}/wandb")
    assert name not in server.runs
    tool(server.url, point.home, "sync", f"{point.folder}/wandb")
    assert server.runs[name].summary["healed/validation/loss"] == point.record["healed/validation/loss"]
    assert steps(server.runs[name]) == STEPS


def test_server_lost_during_a_run_loses_nothing(point, server):
    process = begun(point.folder, "0.25", *point.command, "log.wait=1", **drawn("later", point, server.url))
    server.status = 500
    _, err = process.communicate("end\n", timeout=120)
    server.status = 200
    assert process.returncode == 0, err
    assert "healed/validation/loss" not in server.runs["later"].summary
    (online,) = point.folder.glob("wandb/run-*-later")
    (said,) = (line for line in err.splitlines() if line.startswith("W&B: "))
    assert said.endswith(f"wandb sync --include-online {online}")
    tool(server.url, point.home, "sync", "--include-online", str(online))
    assert server.runs["later"].summary["healed/validation/loss"] == point.record["healed/validation/loss"]


def test_report_figures_are_uploaded_once_and_only_online(point, server):
    first = [each for each in study.read_studies([point.folder.parent]).points if each.folder == point.folder]
    made = figures.draw_figures(first)  # of the study as it was then
    sent = pictures(server.runs[point.record["digest"]])
    assert set(sent) == {f"report/{name}" for name in made} >= {"report/curves", "report/layers", "report/healing"}
    for name, (content,) in sent.items():
        made[name.removeprefix("report/")].savefig(here := io.BytesIO())
        assert np.array_equal(pixels(content), pixels(here.getvalue()))
    for name in ("light", "away", "refused"):  # done before, or offline
        assert pictures(server.runs.get(name, Run())) == {}


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")


def test_undrawable_figures_stop_no_finished_point(point, server):
    environment = drawn("bare", point, server.url, MPLBACKEND="none of any")
    _, err = begun(point.folder, "0.25", *point.command, **environment).communicate("end\n", timeout=60)
    (said,) = (line for line in err.splitlines() if line.startswith("W&B: "))
    assert said.startswith("W&B: the report's figures were not uploaded: ") and "none of any" in said
    assert server.runs["bare"].exit_code == 0 and pictures(server.runs["bare"]) == {}
    assert server.runs["bare"].summary["healed/validation/loss"] == point.record["healed/validation/loss"]


def test_rows_sent_before_a_kill_are_not_repeated(point, server):
    for line in ("", "end\n"):
        process = begun(point.folder, "0.25", *point.command, **drawn("twice", point, server.url))
        while len(server.runs["twice"].history) < len(STEPS):
            assert process.poll() is None
            time.sleep(0.01)
        if not line:
            process.kill()
        process.communicate(line or None, timeout=60)
    assert steps(server.runs["twice"]) == STEPS
    assert server.runs["twice"].exit_code == 0


def test_failed_points_run_is_separate_from_the_next(point, server):
    process = begun(point.folder, "0.25,0.75", *point.command, "name=two", **client(point.home, server.url))
    first, second = (name for name, each in server.runs.items() if each.about["groupName"] == "two")
    assert server.runs[first].exit_code == 1
    _, err = process.communicate("end\n", timeout=60)
    assert process.returncode == 0, err
    assert server.runs[second].exit_code == 0 and server.runs[second].config["prune.frac"] == 0.75
