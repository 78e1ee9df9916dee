"""Studies on disk: their records, and the states of their other points. Damaged contents never raise."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthcut.record import document, links
from depthcut.record import state as point_files
from depthcut.runtime import documents
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError

DIGEST = re.compile("[0-9a-f]{16}")
OTHER_VERSION = "of another version"
UNREADABLE = "unreadable"
DUPLICATE = "also in another study"
FOREIGN = "without points"
BESIDE = frozenset({"figures", links.FOLDER})  # folders of a study that are not points


@dataclass(frozen=True)
class FinishedPoint:
    """A finished point: its checked record and its folder."""

    folder: Path
    record: dict[str, Any]


@dataclass
class Studies:
    """Contents of one or more studies.

    Attributes:
        points: finished points, each once.
        states: counts of all point folders: ``done``, ``failed``, ``running``, ``left``.
        failures: the reason of each failed point, in one line.
        running: points that a process is working on.
        unfinished: all point folders without a usable record.
        damaged: the fault of each unreadable record, in one line.
        skipped: number of folders that yielded no point, by the reason in words.
    """

    points: list[FinishedPoint] = field(default_factory=list[FinishedPoint])
    states: Counter[str] = field(default_factory=Counter[str])
    failures: dict[Path, str] = field(default_factory=dict[Path, str])
    running: list[Path] = field(default_factory=list[Path])
    unfinished: list[Path] = field(default_factory=list[Path])
    damaged: dict[Path, str] = field(default_factory=dict[Path, str])
    skipped: Counter[str] = field(default_factory=Counter[str])

    @property
    def records(self) -> list[dict[str, Any]]:
        """Records of the finished points."""
        return [point.record for point in self.points]

    @property
    def words(self) -> str:
        """All counts in one line, such as ``12 points: 9 done, 1 failed, 0 running, 2 left``."""
        total = sum(self.states.values())
        counts = ", ".join(f"{self.states[state]} {state}" for state in ("done", "failed", "running", "left"))
        skipped = ", ".join(f"{pluralise(count, 'folder')} {why}" for why, count in sorted(self.skipped.items()))
        diverged = sum(record.get("status") == "diverged" for record in self.records)
        counts += f"; {diverged} diverged (a loss is not finite)" if diverged else ""
        return f"{pluralise(total, 'point')}: {counts}" + (f"; skipped: {skipped}" if skipped else "")


def pluralise(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 point``, ``2 points``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def read_studies(studies: Iterable[Path]) -> Studies:
    """Read studies, or folders of studies. Of two records of one point, the later one counts.

    Raises:
        UserError: if a folder does not exist.
    """
    found, kept = Studies(), dict[str, FinishedPoint]()
    for study in dict.fromkeys(each for path in studies for each in study_folders(path)):
        for folder in sorted(path for path in subfolders(study) if path.name not in BESIDE):
            point = read_point(folder, found)
            if point is None:
                continue
            digest = str(point.record["digest"])
            found.skipped[DUPLICATE] += digest in kept
            if digest not in kept or point.record["finished"] >= kept[digest].record["finished"]:
                kept[digest] = point
    found.points = list(kept.values())
    found.skipped = +found.skipped
    return found


def refresh_studies(found: Studies) -> Studies:
    """Update studies: only points that were unfinished are read again."""
    skipped = Counter({why: found.skipped[why] for why in (FOREIGN, DUPLICATE)})
    now = Studies(points=found.points, states=Counter(done=found.states["done"]), skipped=+skipped)
    for folder in found.unfinished:
        read_point(folder, now)
    return now


def study_folders(path: Path) -> Iterator[Path]:
    """Yield the folder itself if it is a study, otherwise the studies in it.

    Raises:
        UserError: if it is not a folder.
    """
    if not path.is_dir():
        raise UserError(f"no study at {path}; create one under outputs/ with `depthcut name=...`")
    children = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if any(is_point_folder(each) for each in children):
        yield path
        return
    studies = [each for each in children if each.name != "cache" and any(map(is_point_folder, subfolders(each)))]
    yield from studies or [path]


def subfolders(path: Path) -> Iterator[Path]:
    """Yield the folders in ``path``; none if it is unreadable."""
    try:
        yield from (each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return


def is_point_folder(folder: Path) -> bool:
    """Return whether a folder belongs to a point."""
    return (folder / "config.yaml").is_file() or (folder / "record.json").is_file()


def read_point(folder: Path, found: Studies) -> FinishedPoint | None:
    """Count one folder, and return its point if it is finished and its record is readable."""
    if not is_point_folder(folder):
        found.skipped[FOREIGN] += 1
        return None
    try:
        record = checked(folder)
        found.states["done"] += 1
        return FinishedPoint(folder, record)
    except FileNotFoundError:
        pass
    except DamagedError as error:
        why = OTHER_VERSION if error.why == OTHER_VERSION else UNREADABLE
        found.skipped[why] += 1
        if why == UNREADABLE:
            found.damaged[folder] = error.why
    state = point_files.point_state(folder)
    state = "left" if state == "done" else state
    found.unfinished.append(folder)
    found.states[state] += 1
    if state == "failed":
        found.failures[folder] = str((point_files.read_failure(folder) or {}).get("reason", "no reason was recorded"))
    elif state == "running":
        found.running.append(folder)
    return None


def checked(folder: Path) -> dict[str, Any]:
    """Return a point's record. A folder whose name is not a digest may hold the record of any point.

    Raises:
        FileNotFoundError: if it does not exist.
        DamagedError: if it is invalid, of another version, or of another point than the folder's name says.
    """
    path = folder / "record.json"
    record = documents.read_json(path, document.LIMIT)
    if record.get("format") != document.FORMAT:
        raise DamagedError(path, OTHER_VERSION)
    if why := document.record_fault(record):
        raise DamagedError(path, why)
    if DIGEST.fullmatch(folder.name) and record["digest"] != folder.name:
        raise DamagedError(path, f"it is the record of point {record['digest']}")
    return record


def point_config(folder: Path) -> dict[str, Any]:
    """Return a point's composed config; empty if it is unreadable."""
    try:
        return documents.read_yaml(folder / "config.yaml")
    except (FileNotFoundError, DamagedError):
        return {}
