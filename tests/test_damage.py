"""Any file of a study may be damaged: the numbers are still right, or one line names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from composing import composed
from depthcut.cli.point import run_point
from depthcut.config import build
from depthcut.record import document, state
from depthcut.report import study
from depthcut.runtime import failures
from depthcut.runtime.errors import UserError
from depthcut.study import recording
from depthcut.study.run import open_run
from running import PICO, run, text_files

POINT = run_point
COMMAND = (*PICO, "model.layers=4", "heal.steps=2", "eval=[loss]", "export=merged")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Run two points that differ in the seed."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = text_files(folder)
    for seed in (0, 1):
        POINT(composed(f"outputs={folder}/outputs", *COMMAND, *corpus, f"seed={seed}"))
    return folder, corpus


class Study:
    """A copy of the two points to damage, and the command of the first."""

    def __init__(self, whole, folder: Path) -> None:
        self.outputs = folder / "outputs"
        shutil.copytree(whole[0] / "outputs", self.outputs)
        self.config = composed(f"outputs={self.outputs}", *COMMAND, *whole[1], "seed=0")
        self.point = open_run(build.build_experiment(self.config)).folder
        (self.other,) = (path.parent for path in self.outputs.glob("main/*/record.json") if path.parent != self.point)
        self.wanted = numbers(self.point)

    def find(self, name: str) -> Path:
        """``adapter/plan.json`` of the point, or ``cache/scores/*/scores.json``."""
        return next(iter(sorted(self.outputs.glob(name)))) if name.startswith("cache") else self.point / name

    def lose(self, *names: str) -> None:
        for name in names:
            for path in self.outputs.glob(name) if name.startswith("cache") else [self.point / name]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def holds(self, path: Path) -> None:
        """Run the point again and assert the right numbers, or one line that names the file."""
        try:
            POINT(self.config)
        except UserError as error:
            said = str(error)
        except OSError as error:
            said = failures.user_error_line(error) or pytest.fail(f"{error!r}")
        else:
            assert numbers(self.point) == self.wanted
            return
        assert path.name in said or path.parent.name in said, said
        assert "\n" not in said


def numbers(point: Path) -> dict[str, Any]:
    found = json.loads((point / "record.json").read_text())
    measured = {key: value for key, value in found.items() if key.startswith(("dense/", "pruned/", "healed/"))}
    return {**measured, "digest": found["digest"], "drop": found["plan"]["drop"]}


@pytest.fixture
def damaged(whole, tmp_path):
    return Study(whole, tmp_path)


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def edited(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": edited(lambda _: b""),
    "cut": edited(lambda content: content[: len(content) * 2 // 3]),
    "list": edited(lambda _: b"[1]"),
    "object": edited(lambda _: b"{}"),
    "garbage": edited(lambda _: b"\xff\x00\x80garbage"),
    "deep": edited(lambda _: b'{"a":' + b"[" * 100_000),
    "folder": replaced(Path.mkdir),
    "loop": replaced(lambda path: path.symlink_to(path)),
    "device": replaced(lambda path: path.symlink_to("/dev/zero")),
}
NAMES = {  # file: what else is deleted, because otherwise the file is not read
    "record.json": (),
    "config.yaml": ("record.json",),
    "plan.json": ("record.json",),
    "cache/hashes.json": ("record.json",),
    "cache/evaluations/*/value.json": ("record.json",),
    "cache/scores/*/scores.json": ("record.json",),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_file_is_named_or_has_no_effect(damaged, name, damage):
    damaged.lose(*NAMES[name])
    path = damaged.find(name)
    DAMAGE[damage](path)
    damaged.holds(path)
    study.read_studies([damaged.outputs / "main"])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("adapter/adapter_model.safetensors", "cut"),
        ("adapter/manifest.json", "list"),
        ("adapter/plan.json", "empty"),
        ("model/model.safetensors", "cut"),
        ("model/manifest.json", "object"),
        ("cache/tokens/*/ids.bin", "cut"),
        ("cache/tokens/*/manifest.json", "deep"),
        ("cache/models/*/config.json", "list"),
    ],
)
def test_damaged_weights_and_tokens_are_recomputed(damaged, name, damage):
    damaged.lose("record.json", "cache/evaluations")
    path = damaged.find(name)
    before = path.read_bytes()
    DAMAGE[damage](path)
    damaged.holds(path)
    if path.name not in ("manifest.json", "plan.json"):
        assert path.read_bytes() == before


def put(kind: str, path: Path) -> None:
    """Replace a path by an entry of another kind."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    {
        "file": lambda: path.write_text("x"),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "nowhere": lambda: path.symlink_to("nowhere/at/all"),
        "full": lambda: path.symlink_to("/dev/full"),
    }[kind]()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("heal", "adapter", "model", "../named") for kind in ("file", "nowhere")),
        *((f"../../cache{name}", "file") for name in ("", "/evaluations", "/scores", "/tokens")),
        *((".x.tmp", kind) for kind in ("folder", "nowhere")),
        *(("run.log", kind) for kind in ("folder", "loop", "nowhere", "full")),
        ("heal.csv", "full"),
    ],
)
def test_file_instead_of_folder_is_reported_or_repaired(damaged, name, kind):
    damaged.lose("record.json")
    path = damaged.point / name
    put(kind, path)
    damaged.holds(Path(os.path.normpath(path)))
    study.read_studies([damaged.outputs / "main"])


def test_damaged_healing_curve_loses_only_its_seconds(damaged):
    damaged.lose("record.json")
    for content in (b"", b"step,tokens\n1,2\n", b"\xff", b"step,seconds\n1,nan\n", b"step,seconds\n1,x\n"):
        (damaged.point / "heal.csv").write_bytes(content)
        damaged.holds(damaged.point / "heal.csv")
        assert "seconds/heal" not in json.loads((damaged.point / "record.json").read_text())
        damaged.lose("record.json")


def evaluation(content: dict[str, Any]) -> dict[str, Any]:
    return next(iter(content["measured"]["healed"].values()))


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "exported is missing": lambda r: r.pop("exported"),
    "exported is null": lambda r: r.update(exported=None),
    "evaluated is missing": lambda r: r.pop("evaluated"),
    "evaluated is a list": lambda r: r.update(evaluated=[]),
    "evaluated holds a text": lambda r: r.update(evaluated={"dense": "x"}),
    "plan is missing": lambda r: r.pop("plan"),
    "depth is absurd": lambda r: r["plan"].update(depth=10**18),
    "a number is a text": lambda r: r.update({"healed/validation/loss": "4"}),
    "a number is endless": lambda r: r.update({"healed/validation/loss": 1e999}),
    "measured is null": lambda r: r.update(measured=None),
    "measured is a list": lambda r: r.update(measured=[1]),
    "an evaluation is something else": lambda r: r.update(measured={"dense": {"x": [1]}}),
    "an evaluation lacks its numbers": lambda r: r.update(measured={"dense": {"x": {"part": "loss"}}}),
    "an evaluation's part is a number": lambda r: evaluation(r).update(part=1),
    "an evaluation's numbers are null": lambda r: evaluation(r).update(numbers=None),
    "an evaluation's number is a text": lambda r: evaluation(r).update(numbers={"validation/loss": "4"}),
    "an evaluation has another key": lambda r: evaluation(r).update(more=1),
    "config is a list": lambda r: r.update(config=[]),
    "format is a list": lambda r: r.update(format=[1]),
}


@pytest.mark.parametrize("change", RECORDS)
def test_malformed_record_is_named_and_recomputed(damaged, change, caplog):
    path = damaged.point / "record.json"
    content = json.loads(path.read_text())
    RECORDS[change](content)
    path.write_text(json.dumps(content))
    assert state.read_record(damaged.point) is None
    damaged.holds(path)
    assert f"{path} cannot be used (" in caplog.text
    assert numbers(damaged.point) == damaged.wanted


def test_out_of_range_number_is_rejected(damaged):
    path = damaged.point / "record.json"
    path.write_text(path.read_text().replace('"status": "done"', '"status": 1e999'))
    with pytest.raises(UserError, match=r"1e999 is beyond the range of numbers"):
        document.load_record(damaged.point)
    damaged.holds(path)
    assert json.loads(path.read_text())["status"] == "done"


def test_malformed_evaluations_are_named_on_another_export(damaged):
    path = damaged.point / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "measured": [1]}))
    POINT(OmegaConf.merge(damaged.config, {"export": "none"}))
    assert numbers(damaged.point) == damaged.wanted


def test_files_of_another_point_are_ignored(damaged):
    """The whole adapter, record, model and evaluations of the other seed, each with its own manifest."""
    damaged.lose("record.json", "adapter", "model")
    for name in ("record.json", "adapter", "model"):
        source = damaged.other / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, damaged.point / name)
    entries = sorted((damaged.outputs / "cache/evaluations").iterdir())
    entries = [entry for entry in entries if entry.is_dir()]
    for one, other in zip(entries, [*entries[1:], entries[0]], strict=True):
        one.rename(other.with_name(f"{other.name}.moved"))
    for entry in entries:
        entry.with_name(f"{entry.name}.moved").rename(entry)
    POINT(damaged.config)
    assert numbers(damaged.point) == damaged.wanted
    weights = "adapter/adapter_model.safetensors"
    assert (damaged.point / weights).read_bytes() != (damaged.other / weights).read_bytes()


@pytest.mark.parametrize("loss", ["model", "model/model.safetensors", "model/manifest.json"])
def test_deleted_export_is_written_again(damaged, loss):
    before = (damaged.point / "model/model.safetensors").read_bytes()
    damaged.lose(loss)
    POINT(damaged.config)
    assert (damaged.point / "model/model.safetensors").read_bytes() == before
    (damaged.point / "model/model.safetensors").write_bytes(before[:-100])
    assert recording.finished_record(open_run(build.build_experiment(damaged.config))) is None


def test_one_failing_point_does_not_stop_others(whole, tmp_path):
    """A tokenizer that panics, a record that is a folder and one without a key: the other points finish."""
    from depthcut.model.pico import byte_tokenizer
    from pico import pico

    for name in ("good", "pan"):
        pico("llama", 4, vocab_size=258).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    path = tmp_path / "pan/tokenizer.json"
    described = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps({**described, "pre_tokenizer": split}))
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "x" * 60 + " and more of it"}) + "\n" + whole_text(whole))
    words = ("-m", f"outputs={tmp_path}/out", "model=local", *PICO[1:], "heal=none", "export=none", "prune=deepest")
    words = [word for word in words if not word.startswith("heal.")]
    texts = [f"data.{part}.paths=[{tmp_path}/x.jsonl]" for part in ("calibration", "train", "validation")]
    spans = ["data.validation.span=[0.0,1.0]"]
    paths = f"model.path={tmp_path}/pan,{tmp_path}/good"
    done = run(*words, *texts, *spans, paths, "prune.layers=1")
    assert done.returncode == 1
    assert "pan/tokenizer.json: the library that reads it failed (" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 2 points done, 1 failed, 0 remaining"), done.stderr
    (good,) = (path.parent for path in tmp_path.glob("out/main/*/record.json"))
    (pan,) = (path.parent for path in tmp_path.glob("out/main/*/failure.json"))
    (good / "record.json").unlink()
    (good / "record.json").mkdir()
    (pan.with_name(f".{pan.name}.lock")).unlink(missing_ok=True)
    (pan.with_name(f".{pan.name}.lock")).mkdir()
    studies = run(*words, *texts, *spans, paths, "prune.layers=1,2")
    assert f".{pan.name}.lock must be a lock file, but it is a folder: delete it" in studies.stderr
    assert studies.stderr.splitlines()[-1].startswith("error: 1 of 4 points done, 3 failed"), studies.stderr
    assert f"{good}/record.json is damaged (a folder)" in studies.stderr
    assert "Traceback" not in studies.stderr and pan.exists()


def whole_text(whole) -> str:
    return (whole[0] / "corpus.jsonl").read_text()


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_study_is_private_if_environment_holds_a_token(tmp_path, monkeypatch):
    from depthcut.runtime import private_folders

    for name in [name for name in os.environ if private_folders.SECRET.search(name)]:
        monkeypatch.delenv(name)
    before = os.umask(0o022)
    try:
        private_folders.make_private_folder(tmp_path / "open/study")
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        private_folders.make_private_folder(tmp_path / "closed/study")
        private_folders.make_private_folder(tmp_path / "open/study")
    finally:
        os.umask(before)
    modes = [(tmp_path / name / "study").stat().st_mode & 0o777 for name in ("open", "closed")]
    assert modes == [0o755, 0o700]
