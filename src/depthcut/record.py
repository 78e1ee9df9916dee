"""What a run leaves: one flat JSON, written last, whose existence means that what it holds is finished."""

import csv
import json
import os
import platform
import resource
import shutil
import subprocess
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from filelock import FileLock, Timeout

from depthcut import complaints, digests, store

if TYPE_CHECKING:
    from depthcut.lab import Lab

FORMAT = 1
FAILURE = "failure.json"
PACKAGES = ("depthcut", "torch", "transformers", "peft", "bitsandbytes", "lightning", "lm_eval", "datasets")


def write(lab: "Lab") -> dict[str, Any]:
    """Gather the record of a finished run and write it, durably."""
    x = lab.experiment
    assert lab.plan is not None
    peak(lab)
    weigh(lab)
    before = read(lab.folder) or {}
    clock(lab, before.get("seconds/heal", 0.0))
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
    if x.prune.reads_scores:
        record["scores"] = digests.scores(lab)
    store.write_json(lab.folder / "record.json", record)
    return record


def peak(lab: "Lab") -> None:
    """Note the peak memory of this process so far, on the host and on the accelerator, in bytes."""
    import torch

    lab.numbers["bytes/peak_host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        earlier = lab.numbers.get("bytes/peak_device", 0)  # before an evaluation of speed began to count anew
        lab.numbers["bytes/peak_device"] = max(earlier, torch.cuda.max_memory_allocated())


def clock(lab: "Lab", before: float) -> None:
    """Note how long healing took in all: also where another process did it, or an earlier run began it."""
    with suppress(FileNotFoundError), (lab.folder / "heal.csv").open(encoding="utf-8", newline="") as file:
        *_, last = csv.DictReader(file)
        lab.numbers["seconds/heal"] = max(float(last["seconds"]), lab.numbers.get("seconds/heal", 0.0), before)


def weigh(lab: "Lab") -> None:
    """Note what the model weighs and costs, whole and cut, with what stands in the gap."""
    from depthcut import shape
    from depthcut.replace.none import NoReplacement

    x = lab.experiment
    assert lab.plan is not None
    dense = lab.weigh(lab.plan.unit)
    left = dense.without(lab.plan.drop) if isinstance(x.replace, NoReplacement) else shape.filled(lab)
    stages = {"dense": dense.whole, "pruned": left}
    if x.heal.trains:
        narrower: Any = getattr(x.heal, "sizes", None)  # of a healing that prunes
        stages["healed"] = narrower(lab) if narrower else left
    lab.numbers |= {f"{stage}/size/{size}": n for stage, sizes in stages.items() for size, n in (sizes or {}).items()}


State = Literal["done", "failed", "running", "left"]


def enrol(lab: "Lab") -> None:
    """Make the point's folder, which says what the point is: whoever looks at the study counts it."""
    path = lab.folder / "config.yaml"
    text = yaml.safe_dump(lab.experiment.composed, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        store.write_text(path, text)


def alone(lab: "Lab") -> FileLock:
    """Held while the point is worked on: another process that wants it waits, and then finds it done."""
    lab.study.mkdir(parents=True, exist_ok=True)
    return FileLock(lock(lab.folder))


def lock(folder: Path) -> Path:
    """The lock of a point's folder."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def attempt(lab: "Lab") -> Generator[None]:
    """Begin on a tidy folder; what goes wrong is left in it as ``failure.json``. Only while the lock is held."""
    enrol(lab)
    for stale in lab.folder.glob(".*.tmp"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    (lab.folder / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        fail(lab.folder, complaints.line(error), error)
        raise


def fail(folder: Path, reason: str, error: Exception | None = None) -> None:
    """Note that a point failed, and why; a full disk must not hide what filled it."""
    failure = {
        "format": FORMAT,
        "digest": folder.name,
        "reason": " ".join(reason.split()),
        "traceback": "".join(traceback.format_exception(error)) if error else "",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
    }
    with suppress(OSError):
        store.write_json(folder / FAILURE, failure)


def failure(folder: Path) -> dict[str, Any] | None:
    """How the last attempt at a point failed; None where it did not."""
    found = parsed(folder / FAILURE)
    return found if found and isinstance(found.get("reason"), str) else None


def state(folder: Path) -> State:
    """How far a point is. A record counts, whatever it holds: it may be asked for more than that."""
    if read(folder):
        return "done"
    if busy(folder):
        return "running"
    return "failed" if failure(folder) else "left"


def busy(folder: Path) -> bool:
    """Whether a process is at work on the point now."""
    if not lock(folder).exists():
        return False
    try:
        with FileLock(lock(folder), blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a point, or None where there is none that this version reads."""
    record = parsed(folder / "record.json")
    return record if record and record.get("format") == FORMAT else None


def parsed(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def finished(lab: "Lab") -> dict[str, Any] | None:
    """The point's record, if it holds all that this experiment asks for."""
    record = read(lab.folder)
    _, export, stages, evaluations = wanted(lab)
    if record is None or export not in record["exported"]:
        return None
    there = all(evaluations <= set(record["evaluated"].get(stage, [])) for stage in stages)
    return record if there else None


Wanted = tuple[Path, str, frozenset[str], frozenset[str]]


def wanted(lab: "Lab") -> Wanted:
    """What is asked of a point: its folder, the export, the stages that are measured, the evaluations."""
    x = lab.experiment
    control = ["control"] if getattr(x.heal, "control", False) else []
    stages = frozenset(stage for stage in [*x.stages, *control] if stage != "healed" or x.heal.trains)
    evaluations = frozenset(digests.evaluation(part, lab) for each in x.eval.values() for part in each.parts())
    return lab.folder, x.export, stages, evaluations


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
