"""What a run leaves: one flat JSON, written last, whose existence means that what it holds is finished."""

import json
import os
import platform
import resource
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from depthcut import digests, store

if TYPE_CHECKING:
    from depthcut.lab import Lab

FORMAT = 1
PACKAGES = ("depthcut", "torch", "transformers", "peft", "bitsandbytes", "lightning", "lm_eval", "datasets")


def write(lab: "Lab") -> dict[str, Any]:
    """Gather the record of a finished run and write it, durably."""
    x = lab.experiment
    assert lab.plan is not None
    peak(lab)
    before = read(lab.folder) or {}
    exported = sorted({*before.get("exported", []), x.export})
    record = {
        "format": FORMAT,
        "digest": lab.digest,
        "study": x.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": lab.plan.to_dict(),
        "fraction": lab.plan.fraction,
        **{key: value for key, value in before.items() if "/" in key},
        **lab.numbers,
        "evaluated": {**before.get("evaluated", {}), **lab.evaluated},
        "exported": exported,
        "config": x.composed,
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "device": device(lab.device),
    }
    store.write_json(lab.folder / "record.json", record)
    return record


def peak(lab: "Lab") -> None:
    """Note the peak memory of this process, on the host and on the accelerator, in bytes."""
    import torch

    lab.numbers["bytes/peak_host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        lab.numbers["bytes/peak_device"] = torch.cuda.max_memory_allocated()


def alone(lab: "Lab") -> FileLock:
    """Held while the point is worked on: another process that wants it waits, and then finds it done."""
    lab.study.mkdir(parents=True, exist_ok=True)
    return FileLock(lab.study / f".{lab.digest}.lock")


def tidy(lab: "Lab") -> None:
    """Remove what a killed process left half-written in the point's folder; only while the lock is held."""
    for stale in lab.folder.glob(".*.tmp"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a point, or None where there is none that this version reads."""
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def finished(lab: "Lab") -> dict[str, Any] | None:
    """The point's record, if it holds all that this experiment asks for."""
    x = lab.experiment
    record = read(lab.folder)
    if record is None or x.export not in record["exported"]:
        return None
    stages = [stage for stage in x.stages if stage != "healed" or x.heal.trains]
    wanted = {digests.evaluation(part, lab) for each in x.eval.values() for part in each.parts()}
    there = all(wanted <= set(record["evaluated"].get(stage, [])) for stage in stages)
    return record if there else None


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with ``+changes`` where it was edited."""
    folder = Path(__file__).parent
    try:
        head = git(folder, "rev-parse", "HEAD")
        return head + ("+changes" if git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git(folder: Path, *words: str) -> str:
    """What git answers."""
    call = ["git", "-C", str(folder), *words]
    return subprocess.run(call, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def device(name: str) -> str:
    """The processor or the accelerator, in words."""
    if name.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name()
    model = next((line for line in cpu_lines() if line.startswith("model name")), "")
    return f"{model.partition(':')[2].strip() or platform.machine()}, {os.cpu_count()} cores"


def cpu_lines() -> list[str]:
    """/proc/cpuinfo, where there is one."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
