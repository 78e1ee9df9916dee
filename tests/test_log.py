"""The real W&B client, offline: no account, no key, and nothing is logged twice."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from composing import composed
from depthcut.config import build
from depthcut.log import wandb as log
from depthcut.study.run import open_run
from running import PICO, run, text_files
from standins.wandb import serve
from wandb_client import begun, client, tool

STEPS = [1, 2, 3, 4, 5, 6]


@dataclass(frozen=True)
class Logged:
    """A finished point that was logged."""

    home: Any
    command: Any
    folder: Any
    record: Any
    first: Any


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Logged:
    """Heal a point and log it offline; then resume its W&B run, as when something is added to the record."""
    home = tmp_path_factory.mktemp("offline")
    command = (f"outputs={home}/outputs", *PICO, *text_files(home), "log=wandb", "export=none")
    done = run(*command, "prune.frac=0.25", **client(home))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wandb: ") <= 5 and "W&B run: offline; upload it with wandb sync" in done.stderr
    (path,) = home.glob("outputs/main/*/record.json")
    first = newest(path.parent)
    again = begun(path.parent, "0.25", *command, **client(home))
    _, err = again.communicate("end\n", timeout=60)
    assert again.returncode == 0, err
    record = json.loads(path.read_text())
    return Logged(home=home, command=command, folder=path.parent, record=record, first=first)


def newest(folder: Path) -> Path:
    return (folder / "wandb/latest-run").resolve()


def inspect(folder: Path, *how: str) -> str:
    return tool("", folder, "leet", "inspect", "--json", *how, str(folder))


def curve(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run directory in order."""
    rows = [json.loads(line) for line in inspect(folder).splitlines() if line.startswith("{")]
    return [row["history"]["item"] for row in rows if row["type"] == "history"]


def test_run_logs_its_config_curve_and_record(kept):
    told = json.loads(inspect(kept.first, "--summary"))
    assert (told["run_id"], told["state"]) == (kept.record["digest"], "finished")
    numbers = {key: value for key, value in kept.record.items() if "/" in key}
    assert "healed/validation/loss" in numbers and numbers.items() <= told["summary"].items()
    plan = {key: told["summary"][key] for key in ("fraction", "layers", "plan", "drop")}
    assert plan == {"fraction": 0.25, "layers": 2, "plan": kept.record["plan"]["words"], "drop": [[4, 6]]}
    assert [row["heal/step"] for row in curve(kept.first)] == STEPS
    assert {"angular", "block", "lora", "pico"} == set(told["tags"])


def test_logged_config_keys_are_override_names(kept):
    knobs = json.loads(inspect(kept.first, "--summary"))["config"]
    assert (knobs["prune"], knobs["prune.frac"], knobs["prune.keep_last"]) == ("block", 0.25, 1)
    assert (knobs["metric"], knobs["metric.token"], knobs["heal"], knobs["replace"]) == (
        "angular",
        "last",
        "lora",
        "none",
    )
    assert (knobs["model.name"], knobs["model.layers"], knobs["heal.steps"]) == ("pico", 8, 6)
    leaves = {key for key in knobs if not any(other.startswith(f"{key}.") for other in knobs)}
    settable = leaves - {"digest", "model.name", "replace", "log"}
    assert len(settable) > 50
    composed("model=pico", "data=files", "eval=[loss]", "log=wandb", *(f"{key}=null" for key in settable))


def test_small_files_of_the_point_are_logged(kept):
    for name in ("plan.json", "heal.csv", "record.json"):
        assert (kept.first / "files" / name).stat().st_size > 0
    assert json.loads((kept.first / "files/plan.json").read_text())["drop"] == [[4, 6]]


def test_repeated_run_resumes_its_id_and_whole_curve(kept):
    second = newest(kept.folder)
    assert second != kept.first and second.name.endswith(kept.record["digest"])
    rows, before = curve(second), curve(kept.first)
    assert [row["heal/step"] for row in rows] == STEPS
    assert [row["heal/loss"] for row in rows] == pytest.approx([row["heal/loss"] for row in before], rel=1e-5)


def test_sync_uploads_once(kept):
    with serve() as server:
        tool(server.url, kept.home, "sync", str(kept.folder / "wandb"))
        (name, arrived), *others = server.runs.items()
    assert (name, others, server.unknown) == (kept.record["digest"], [], [])
    assert [row["heal/step"] for row in arrived.rows] == STEPS
    assert arrived.summary["healed/validation/loss"] == kept.record["healed/validation/loss"]
    assert arrived.config["prune.frac"] == 0.25
    assert (arrived.about["groupName"], arrived.about["jobType"]) == ("main", "lora")
    assert json.loads(arrived.files["plan.json"])["words"] == kept.record["plan"]["words"]
    assert arrived.exit_code == 0


def test_repeated_run_without_agent_logs_nothing(kept):
    before = sorted(kept.folder.rglob("*"))
    done = run(*kept.command, "prune.frac=0.25", **client(kept.home))
    assert done.returncode == 0 and "already done" in done.stderr
    assert sorted(kept.folder.rglob("*")) == before


def test_unused_metric_is_logged_as_none():
    def knobs(*overrides: str) -> dict[str, Any]:
        x = build.build_experiment(composed("model=pico", *overrides))
        return log.run_config(open_run(x))

    assert knobs("prune=block")["metric"] == "angular" and knobs("prune=block")["metric.token"] == "last"
    deepest = knobs("prune=deepest")
    assert deepest["metric"] == "none" and not [key for key in deepest if key.startswith("metric.")]


@pytest.mark.parametrize(
    ("known", "key"),
    [
        ({}, False),
        ({"WANDB_API_KEY": "0" * 40}, True),
        ({"NETRC": "netrc"}, True),
        ({"NETRC": "netrc", "WANDB_BASE_URL": "https://wandb.example.org"}, False),
        ({"NETRC": "missing"}, False),
    ],
)
def test_api_key_lookup(known, key, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert log.has_api_key() is key and log.wandb_mode() == (None if key else "offline")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert log.wandb_mode() is None
