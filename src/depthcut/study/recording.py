"""What a run leaves: one flat JSON, written last, whose existence means that what it holds is finished."""

import csv
import math
import platform
import resource
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from filelock import FileLock, Timeout

from depthcut.record import document, measured
from depthcut.record.document import FAILURE, FORMAT
from depthcut.runtime import documents, failures, private_folders, provenance, store
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError
from depthcut.study import digests

if TYPE_CHECKING:
    from depthcut.study.lab import Lab


def write(lab: "Lab") -> dict[str, Any]:
    """Gather the record of a finished run and write it, durably."""
    x = lab.experiment
    assert lab.plan is not None
    peak(lab)
    weigh(lab)
    before = read(lab.folder) or {}
    clock(lab, before.get("seconds/heal", 0.0))
    found = {stage: measured.to_dict(lab.measured[stage]) for stage in lab.measured}
    exported = sorted({*before.get("exported", []), x.export})
    record = {
        "format": FORMAT,
        "digest": lab.digest,
        "study": x.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": lab.plan.to_dict(),
        "fraction": lab.plan.fraction,
        **kept_numbers(before, lab),
        **lab.numbers,
        "status": "diverged" if diverged(lab) else "done",
        "measured": {**before.get("measured", {}), **found},
        "evaluated": {**before.get("evaluated", {}), **{stage: list(found[stage]) for stage in found}},
        "exported": exported,
        "config": x.composed,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "device": provenance.device(lab.device),
    }
    if x.prune.reads_scores:
        record["scores"] = digests.scores(lab)
    store.write_json(lab.folder / "record.json", record)
    return record


def kept_numbers(before: dict[str, Any], lab: "Lab") -> dict[str, float]:
    """Return the numbers of an earlier record, without those that this run measured or named anew."""
    earlier = {stage: measured.from_record(before, stage) for stage in lab.measured}
    stale = {
        f"{stage}/{name}"
        for stage, found in earlier.items()
        for name in (*measured.named(found), *measured.rivals(found))
    }
    return {key: value for key, value in before.items() if "/" in key and key not in stale}


def diverged(lab: "Lab") -> bool:
    """Tell whether a number of the cut or the healed model is not finite, in the settings of the config."""
    return any(not value for key, value in lab.numbers.items() if key.endswith("_finite") and "[" not in key)


def peak(lab: "Lab") -> None:
    """Note the peak memory of this process so far, on the host and on the accelerator, in bytes."""
    import torch

    lab.numbers["bytes/peak_host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        earlier = lab.numbers.get("bytes/peak_device", 0)  # before an evaluation of speed began to count anew
        lab.numbers["bytes/peak_device"] = max(earlier, torch.cuda.max_memory_allocated())


def clock(lab: "Lab", before: float) -> None:
    """Note how long healing took in all: also where another process did it, or an earlier run began it."""
    with suppress(OSError, ValueError, KeyError, TypeError, csv.Error):  # no healing, or a damaged curve
        *_, last = csv.DictReader(documents.text(lab.folder / "heal.csv", documents.LIMIT).splitlines())
        seconds = float(last["seconds"])
        if math.isfinite(seconds):
            lab.numbers["seconds/heal"] = max(seconds, lab.numbers.get("seconds/heal", 0.0), before)


def weigh(lab: "Lab") -> None:
    """Note what the model weighs and costs, whole and cut, with what stands in the gap."""
    from depthcut.model.surgery import sizes as surgery_sizes
    from depthcut.replace.none import NoReplacement

    x = lab.experiment
    assert lab.plan is not None
    dense = lab.weigh(lab.plan.unit)
    left = dense.without(lab.plan.drop) if isinstance(x.replace, NoReplacement) else surgery_sizes.filled(lab)
    stages = {"dense": dense.whole, "pruned": left}
    if x.heal.trains:
        narrower: Any = getattr(x.heal, "sizes", None)  # of a healing that prunes
        stages["healed"] = narrower(lab) if narrower else left
    lab.numbers |= {f"{stage}/size/{size}": n for stage, sizes in stages.items() for size, n in (sizes or {}).items()}


State = Literal["done", "failed", "running", "left"]


def enrol(lab: "Lab") -> None:
    """Make the point's folder, which says what the point is: whoever looks at the study counts it."""
    private_folders.make(lab.study)
    path = lab.folder / "config.yaml"
    text = yaml.safe_dump(lab.experiment.composed, sort_keys=False)
    if not path.is_file() or path.read_bytes() != text.encode():
        store.write_text(path, text)


def alone(lab: "Lab") -> FileLock:
    """Held while the point is worked on: another process that wants it waits, and then finds it done."""
    private_folders.make(lab.study)
    return store.lock(lock(lab.folder))


def lock(folder: Path) -> Path:
    """The lock of a point's folder."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def attempt(lab: "Lab") -> Generator[None]:
    """Begin on a tidy folder; what goes wrong is left in it as ``failure.json``. Only while the lock is held."""
    enrol(lab)
    for stale in lab.folder.glob(".*.tmp"):
        store.remove(stale)
    (lab.folder / FAILURE).unlink(missing_ok=True)
    try:
        document.inspect(lab.folder)
        yield
    except failures.STOPS:
        raise
    except BaseException as error:
        fail(lab.folder, failures.line(error), error)
        raise


def fail(folder: Path, reason: str, error: BaseException | None = None) -> None:
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


def forget_failure(folder: Path) -> None:
    """Remove what an earlier attempt at a point that is done by now left."""
    with suppress(OSError):
        (folder / FAILURE).unlink(missing_ok=True)


def failure(folder: Path) -> dict[str, Any] | None:
    """How the last attempt at a point failed; None where it did not."""
    found = documents.found(folder / FAILURE)
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
        with store.lock(lock(folder)).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except (OSError, UserError):
        return False


def read(folder: Path) -> dict[str, Any] | None:
    """Return the record of a point, or None if it has none that this version reads."""
    try:
        return document.load(folder)
    except (FileNotFoundError, DamagedError):
        return None


def finished(lab: "Lab") -> dict[str, Any] | None:
    """The point's record, if it holds all that this experiment asks for, and what was exported is there."""
    record = read(lab.folder)
    _, export, stages, evaluations = wanted(lab)
    if record is None or export not in record["exported"]:
        return None
    if missing(export, lab, record):
        return None
    there = all(evaluations <= set(record["evaluated"].get(stage, [])) for stage in stages)
    return record if there else None


def missing(export: str, lab: "Lab", record: dict[str, Any]) -> bool:
    """Return whether an export that the record names is gone or cut short; one that did not have to be made is not."""
    if export == "none" or (export == "adapter" and "seconds/heal" not in record):  # a cut that leaves nothing to heal
        return False
    return store.incomplete(lab.folder / {"merged": "model"}.get(export, export), lab.digest) is not None


Wanted = tuple[Path, str, frozenset[str], frozenset[str]]


def wanted(lab: "Lab") -> Wanted:
    """What is asked of a point: its folder, the export, the stages that are measured, the evaluations."""
    x = lab.experiment
    control = ["control"] if getattr(x.heal, "control", False) else []
    stages = frozenset(stage for stage in [*x.stages, *control] if stage != "healed" or x.heal.trains)
    evaluations = frozenset(digests.evaluation(part, lab) for each in x.eval.values() for part in each.parts())
    return lab.folder, x.export, stages, evaluations
