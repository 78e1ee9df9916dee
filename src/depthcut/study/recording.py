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


def write_record(lab: "Lab") -> dict[str, Any]:
    """Gather the record of a finished run and write it, durably."""
    x = lab.experiment
    assert lab.plan is not None
    record_peak_memory(lab)
    record_sizes(lab)
    before = read_record(lab.folder) or {}
    record_healing_time(lab, before.get("seconds/heal", 0.0))
    found = {stage: measured.measured_to_dict(lab.measured[stage]) for stage in lab.measured}
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
        "status": "diverged" if has_diverged(lab) else "done",
        "measured": {**before.get("measured", {}), **found},
        "evaluated": {**before.get("evaluated", {}), **{stage: list(found[stage]) for stage in found}},
        "exported": exported,
        "config": x.composed,
        "versions": provenance.package_versions(),
        "commit": provenance.source_commit(),
        "device": provenance.device_name(lab.device),
    }
    if x.prune.reads_scores:
        record["scores"] = digests.scores_digest(lab)
    store.write_json(lab.folder / "record.json", record)
    return record


def kept_numbers(before: dict[str, Any], lab: "Lab") -> dict[str, float]:
    """Return the numbers of an earlier record, without those that this run measured or named anew."""
    earlier = {stage: measured.measured_from_record(before, stage) for stage in lab.measured}
    stale = {
        f"{stage}/{name}"
        for stage, found in earlier.items()
        for name in (*measured.named_numbers(found), *measured.rivals(found))
    }
    return {key: value for key, value in before.items() if "/" in key and key not in stale}


def has_diverged(lab: "Lab") -> bool:
    """Tell whether a number of the cut or the healed model is not finite, in the settings of the config."""
    return any(not value for key, value in lab.numbers.items() if key.endswith("_finite") and "[" not in key)


def record_peak_memory(lab: "Lab") -> None:
    """Note the peak memory of this process so far, on the host and on the accelerator, in bytes."""
    import torch

    lab.numbers["bytes/peak_host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        earlier = lab.numbers.get("bytes/peak_device", 0)  # before an evaluation of speed began to count anew
        lab.numbers["bytes/peak_device"] = max(earlier, torch.cuda.max_memory_allocated())


def record_healing_time(lab: "Lab", before: float) -> None:
    """Note how long healing took in all: also where another process did it, or an earlier run began it."""
    with suppress(OSError, ValueError, KeyError, TypeError, csv.Error):  # no healing, or a damaged curve
        *_, last = csv.DictReader(documents.read_bounded_text(lab.folder / "heal.csv", documents.LIMIT).splitlines())
        seconds = float(last["seconds"])
        if math.isfinite(seconds):
            lab.numbers["seconds/heal"] = max(seconds, lab.numbers.get("seconds/heal", 0.0), before)


def record_sizes(lab: "Lab") -> None:
    """Note what the model weighs and costs, whole and cut, with what stands in the gap."""
    from depthcut.model.surgery import sizes as surgery_sizes
    from depthcut.replace.none import NoReplacement

    x = lab.experiment
    assert lab.plan is not None
    dense = lab.weigh(lab.plan.unit)
    left = (
        dense.without(lab.plan.drop) if isinstance(x.replace, NoReplacement) else surgery_sizes.filled_model_sizes(lab)
    )
    stages = {"dense": dense.whole, "pruned": left}
    if x.heal.trains:
        narrower: Any = getattr(x.heal, "sizes", None)  # of a healing that prunes
        stages["healed"] = narrower(lab) if narrower else left
    lab.numbers |= {f"{stage}/size/{size}": n for stage, sizes in stages.items() for size, n in (sizes or {}).items()}


PointState = Literal["done", "failed", "running", "left"]


def register_point(lab: "Lab") -> None:
    """Make the point's folder, which says what the point is: whoever looks at the study counts it."""
    private_folders.make_private_folder(lab.study)
    path = lab.folder / "config.yaml"
    text = yaml.safe_dump(lab.experiment.composed, sort_keys=False)
    if not path.is_file() or path.read_bytes() != text.encode():
        store.write_text(path, text)


def point_lock(lab: "Lab") -> FileLock:
    """Held while the point is worked on: another process that wants it waits, and then finds it done."""
    private_folders.make_private_folder(lab.study)
    return store.lock(lock_path(lab.folder))


def lock_path(folder: Path) -> Path:
    """The lock of a point's folder."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def attempt_point(lab: "Lab") -> Generator[None]:
    """Begin on a tidy folder; what goes wrong is left in it as ``failure.json``. Only while the lock is held."""
    register_point(lab)
    for stale in lab.folder.glob(".*.tmp"):
        store.remove(stale)
    (lab.folder / FAILURE).unlink(missing_ok=True)
    try:
        document.inspect_point(lab.folder)
        yield
    except failures.STOPS:
        raise
    except BaseException as error:
        write_failure(lab.folder, failures.error_line(error), error)
        raise


def write_failure(folder: Path, reason: str, error: BaseException | None = None) -> None:
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


def read_failure(folder: Path) -> dict[str, Any] | None:
    """How the last attempt at a point failed; None where it did not."""
    found = documents.read_json_if_present(folder / FAILURE)
    return found if found and isinstance(found.get("reason"), str) else None


def point_state(folder: Path) -> PointState:
    """How far a point is. A record counts, whatever it holds: it may be asked for more than that."""
    if read_record(folder):
        return "done"
    if is_running(folder):
        return "running"
    return "failed" if read_failure(folder) else "left"


def is_running(folder: Path) -> bool:
    """Whether a process is at work on the point now."""
    if not lock_path(folder).exists():
        return False
    try:
        with store.lock(lock_path(folder)).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except (OSError, UserError):
        return False


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a point, or None if it has none that this version reads."""
    try:
        return document.load_record(folder)
    except (FileNotFoundError, DamagedError):
        return None


def finished_record(lab: "Lab") -> dict[str, Any] | None:
    """The point's record, if it holds all that this experiment asks for, and what was exported is there."""
    record = read_record(lab.folder)
    _, export, stages, evaluations = point_requirements(lab)
    if record is None or export not in record["exported"]:
        return None
    if export_missing(export, lab, record):
        return None
    there = all(evaluations <= set(record["evaluated"].get(stage, [])) for stage in stages)
    return record if there else None


def export_missing(export: str, lab: "Lab", record: dict[str, Any]) -> bool:
    """Return whether an export that the record names is gone or cut short; one that did not have to be made is not."""
    if export == "none" or (export == "adapter" and "seconds/heal" not in record):  # a cut that leaves nothing to heal
        return False
    return store.size_fault(lab.folder / {"merged": "model"}.get(export, export), lab.digest) is not None


PointRequirements = tuple[Path, str, frozenset[str], frozenset[str]]


def point_requirements(lab: "Lab") -> PointRequirements:
    """What is asked of a point: its folder, the export, the stages that are measured, the evaluations."""
    x = lab.experiment
    control = ["control"] if getattr(x.heal, "control", False) else []
    stages = frozenset(stage for stage in [*x.stages, *control] if stage != "healed" or x.heal.trains)
    evaluations = frozenset(digests.evaluation_digest(part, lab) for each in x.eval.values() for part in each.parts())
    return lab.folder, x.export, stages, evaluations
