"""The record of a run: one flat JSON, written last; if it exists, its contents are complete."""

import csv
import math
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from depthcut.record import document, measured, state
from depthcut.record.document import FAILURE, FORMAT
from depthcut.runtime import documents, failures, private_folders, provenance, store, verified
from depthcut.study import digests
from depthcut.study.recorded_sizes import record_sizes

if TYPE_CHECKING:
    from depthcut.study.run import Run


def write_record(run: "Run") -> dict[str, Any]:
    """Assemble the record of a finished run and write it atomically."""
    x = run.experiment
    assert run.plan is not None
    run.numbers.note_peak_memory()
    record_sizes(run)
    before = state.read_record(run.folder) or {}
    record_healing_time(run, before.get("seconds/heal", 0.0))
    found = {stage: measured.measured_to_dict(run.measured[stage]) for stage in run.measured}
    exported = sorted({*before.get("exported", []), x.export})
    record = {
        "format": FORMAT,
        "digest": run.digest,
        "study": x.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": run.plan.to_dict(),
        "fraction": run.plan.fraction,
        **kept_numbers(before, run),
        **run.numbers,
        "status": "diverged" if has_diverged(run) else "done",
        "measured": {**before.get("measured", {}), **found},
        "evaluated": {**before.get("evaluated", {}), **{stage: list(found[stage]) for stage in found}},
        "exported": exported,
        "config": x.composed,
        "versions": provenance.package_versions(),
        "commit": provenance.source_commit(),
        "device": provenance.device_name(run.device),
    }
    if x.prune.reads_scores:
        record["scores"] = digests.scores_digest(run)
    store.write_json(run.folder / "record.json", record)
    return record


def kept_numbers(before: dict[str, Any], run: "Run") -> dict[str, float]:
    """Return the numbers of an earlier record, except for those that this run measured or renamed."""
    earlier = {stage: measured.measured_from_record(before, stage) for stage in run.measured}
    stale = {
        f"{stage}/{name}"
        for stage, found in earlier.items()
        for name in (*measured.named_numbers(found), *measured.rivals(found))
    }
    return {key: value for key, value in before.items() if "/" in key and key not in stale}


def has_diverged(run: "Run") -> bool:
    """Return whether a number of the cut or healed model is not finite, in the settings of the config."""
    return any(not value for key, value in run.numbers.items() if key.endswith("_finite") and "[" not in key)


def record_healing_time(run: "Run", before: float) -> None:
    """Record the total healing time, including that of another process or an earlier run."""
    with suppress(OSError, ValueError, KeyError, TypeError, csv.Error):  # not healed, or a damaged curve
        *_, last = csv.DictReader(documents.read_bounded_text(run.folder / "heal.csv", documents.LIMIT).splitlines())
        seconds = float(last["seconds"])
        if math.isfinite(seconds):
            run.numbers["seconds/heal"] = max(seconds, run.numbers.get("seconds/heal", 0.0), before)


def register_point(run: "Run") -> None:
    """Create the point's folder with its config; reports of the study then count the point."""
    private_folders.make_private_folder(run.study)
    path = run.folder / "config.yaml"
    text = yaml.safe_dump(run.config, sort_keys=False)
    if not path.is_file() or path.read_bytes() != text.encode():
        store.write_text(path, text)


def point_lock(run: "Run") -> FileLock:
    """Return the lock of a point: a second process waits for it, then finds the finished record."""
    private_folders.make_private_folder(run.study)
    return store.lock(state.lock_path(run.folder))


@contextmanager
def attempt_point(run: "Run") -> Generator[None]:
    """Clean the point's folder, and write ``failure.json`` on an error. The caller holds the lock."""
    register_point(run)
    for stale in run.folder.glob(".*.tmp"):
        store.remove(stale)
    (run.folder / FAILURE).unlink(missing_ok=True)
    try:
        document.inspect_point(run.folder)
        yield
    except failures.STOPS:
        raise
    except BaseException as error:
        state.write_failure(run.folder, failures.error_line(error), error)
        raise


def finished_record(run: "Run") -> dict[str, Any] | None:
    """Return the point's record if it covers everything that this experiment requests, and the export exists."""
    record = state.read_record(run.folder)
    _, export, stages, evaluations = point_requirements(run)
    if record is None or export not in record["exported"]:
        return None
    if export_missing(export, run, record):
        return None
    there = all(evaluations <= set(record["evaluated"].get(stage, [])) for stage in stages)
    return record if there else None


def export_missing(export: str, run: "Run", record: dict[str, Any]) -> bool:
    """Return whether an export in the record is missing or truncated; one that was not needed is not missing."""
    if export == "none" or (export == "adapter" and "seconds/heal" not in record):  # a cut with nothing to heal
        return False
    return verified.size_fault(run.folder / {"merged": "model"}.get(export, export), run.digest) is not None


PointRequirements = tuple[Path, str, frozenset[str], frozenset[str]]


def point_requirements(run: "Run") -> PointRequirements:
    """Return the requests to a point: its folder, the export, the measured stages, the evaluations."""
    x = run.experiment
    control = ["control"] if x.heal.heals_control else []
    stages = frozenset(stage for stage in [*x.stages, *control] if stage != "healed" or x.heal.trains)
    evaluations = frozenset(digests.evaluation_digest(part, run) for each in x.eval.values() for part in each.parts())
    return run.folder, x.export, stages, evaluations
