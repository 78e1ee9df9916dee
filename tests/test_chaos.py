"""A sweep that is killed repeatedly, with files damaged in between, ends with the records of an undisturbed one.

DEPTHCUT_KILLS says how often; after every third kill one file of the cache or of a point is cut, garbled, emptied,
removed, or changes places with another of its name.
"""

import json
import os
import random
import time
from pathlib import Path

import pytest

from depthcut.record import state
from depthcut.runtime import verified
from running import PICO, run, start, text_files

KILLS = int(os.environ.get("DEPTHCUT_KILLS", "20"))
SWEEP = (*PICO, "prune.layers=1,2,3,4,5,6", "seed=0,1", "heal.save_every=2", "export=adapter")
STAGES = {  # files that exist while a stage runs
    "scores": "cache/scores/.*.tmp",
    "healing": "main/*/heal.csv",
    "checkpoint": "main/*/**/*.ckpt*",
    "evaluation": "cache/evaluations/.*.tmp",
    "record": "main/*/record.json",
}
ASIDE = ("seconds/", "bytes/", "finished", "config")

pytestmark = pytest.mark.slow


def records(outputs: Path) -> dict[str, dict]:
    """Read the records by digest, without the keys that differ from run to run."""
    found = {path.parent.name: json.loads(path.read_text()) for path in outputs.glob("main/*/record.json")}
    return {
        digest: {key: value for key, value in record.items() if not key.startswith(ASIDE)}
        for digest, record in found.items()
    }


def killed_at(stage: str, outputs: Path, arguments: tuple[str, ...], chance: random.Random) -> bool:
    """Start the sweep and kill it at a stage, or some seconds after its start if the stage does not come.

    Return False if it ended first.
    """
    before = {path: path.stat().st_mtime_ns for path in outputs.glob(STAGES[stage])}
    process = start("-m", f"outputs={outputs}", *arguments)
    latest = time.monotonic() + chance.uniform(1, 5)
    while process.poll() is None:
        try:
            now = {path: path.stat().st_mtime_ns for path in outputs.glob(STAGES[stage])}
        except FileNotFoundError:  # deleted meanwhile
            continue
        if now.items() - before.items() or time.monotonic() > latest:
            time.sleep(chance.random() * 0.05)
            process.kill()
            process.communicate()
            return True
        time.sleep(0.001)
    process.communicate()
    return False


def damage(outputs: Path, chance: random.Random) -> Path | None:
    """Damage one of the files that a run reads again."""
    files = [
        path for path in outputs.rglob("*") if path.is_file() and "/." not in str(path.relative_to(outputs.parent))
    ]
    files = sorted(path for path in files if path.name not in ("run.log", "README.md"))
    if not files:
        return None
    path = chance.choice(files)
    content = path.read_bytes()
    alike = [each for each in files if each.name == path.name and each != path]
    match chance.choice(("cut", "garble", "empty", "remove", *(("swap",) * bool(alike)))):
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "garble" if content:
            at = chance.randrange(len(content))
            path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        case "swap":
            swap(*(each if each.parent.parent.name == "main" else each.parent for each in (path, chance.choice(alike))))
        case "remove":
            path.unlink()
        case _:
            path.write_bytes(b"")
    return path


def swap(one: Path, other: Path) -> None:
    """Exchange two files of points, or two whole entries."""
    one.rename(aside := one.with_name("aside"))
    other.rename(one)
    aside.rename(other)


def sound(path: Path) -> bool:
    """Tell whether the point of a record is still done after the damage."""
    return (
        state.read_record(path.parent) is not None
        and verified.size_fault(path.parent / "adapter", path.parent.name) is None
    )


def test_repeatedly_killed_sweep_equals_uninterrupted_sweep(tmp_path):
    arguments = (*SWEEP, *text_files(tmp_path))
    outputs, chance, kills, done, damaged = tmp_path / "outputs", random.Random(0), 0, {}, []
    for number in range(KILLS):
        kills += killed_at(list(STAGES)[number % len(STAGES)], outputs, arguments, chance)
        if number % 3 == 2 and (hit := damage(outputs, chance)):
            damaged.append(hit)
            done = {path: time for path, time in done.items() if sound(path)}  # the others are recomputed
        for path in filter(sound, outputs.glob("main/*/record.json")):
            assert done.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "a point ran twice"
    last = run("-m", f"outputs={outputs}", *arguments)
    assert last.returncode == 0, (last.stderr, damaged)
    assert kills >= KILLS // 2 and damaged
    undisturbed = run("-m", f"outputs={tmp_path}/undisturbed", *arguments)
    assert undisturbed.returncode == 0, undisturbed.stderr
    found, wanted = records(outputs), records(tmp_path / "undisturbed")
    assert len(wanted) == 12
    assert found == wanted, damaged
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    strays = [path for path in outputs.rglob("*") if path.name.endswith(".tmp")]
    assert not strays
