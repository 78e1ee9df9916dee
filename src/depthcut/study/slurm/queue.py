"""The SLURM jobs of a study: noted in their points' folders, looked up in the queue, waited for.

Their states come from ``squeue``. submitit would ask ``sacct``: without accounting, a job that was killed hard then
never ends.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from depthcut.record import state
from depthcut.runtime import documents, private_folders, progress, store
from depthcut.runtime.errors import UserError
from depthcut.study import recording

if TYPE_CHECKING:
    from depthcut.study.sweep import Sweep, SweepPoint

JOB_FILE = "job.json"
GRACE_SECONDS = 10.0
"""Seconds that a shared file system may need to show what a job wrote last."""
ENDED_STATES = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)


@dataclass(frozen=True)
class JobRecord:
    """A point's job, noted in the point's folder before it is submitted, so that whoever comes later finds it.

    Attributes:
        name: of the array; no other has it.
        index: of the job in the array.
        job: SLURM's number of it, once it is known.
    """

    name: str
    index: int
    job: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "JobRecord | None":
        """The job that was last submitted for the point in ``folder``."""
        found = documents.read_json_if_present(folder / JOB_FILE) or {}
        name, index, job = (found.get(key) for key in ("name", "index", "job"))
        if not isinstance(name, str) or not isinstance(index, int) or not isinstance(job, str | None):
            return None
        return cls(name, index, job)

    def write(self, folder: Path) -> "JobRecord":
        """Note it in the point's folder, durably."""
        store.write_json(folder / JOB_FILE, asdict(self))
        return self


@dataclass(frozen=True)
class QueueEntry:
    """A job as ``squeue`` lists it: its number, its state and, while it waits, what for."""

    job: str
    state: str
    reason: str

    @property
    def alive(self) -> bool:
        """Whether it waits, runs, or is between the two. A state that is not known counts, until the job is gone."""
        return self.state not in ENDED_STATES


class QueueUnavailableError(UserError):
    """``squeue`` gave no answer, which says nothing about the jobs."""


Queue = dict[tuple[str, int], QueueEntry]


def read_queue() -> Queue:
    """This user's jobs, by the name and index of their tickets; those that ended a short while ago too.

    Raises:
        SilentError: if the cluster does not answer.
    """
    call = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%j|%r"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        done = subprocess.run(call, check=True, capture_output=True, text=True, timeout=120, env=plain)
    except subprocess.CalledProcessError as error:
        raise QueueUnavailableError(
            f"squeue does not answer, which says nothing about the jobs: {error.stderr}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise QueueUnavailableError("squeue does not answer within 2 minutes") from error
    return parse_queue(done.stdout.splitlines())


def parse_queue(lines: Iterable[str]) -> Queue:
    """Read ``26_3|RUNNING|main-1f0a9c3e|None`` and its like; a job that is no part of an array has index 0."""
    found: Queue = {}
    for line in lines:
        job, state, name, reason = line.split("|", 3)
        index = job.partition("_")[2] or "0"
        if index.isdigit():
            found[name, int(index)] = QueueEntry(job, state, reason)
    return found


@dataclass
class WatchedJob:
    """A job that is waited for.

    Attributes:
        ticket: the job.
        points: those of the sweep that it is to run; they share a folder.
        adopted: whether another launcher submitted it, which may have asked for less.
        gone: since when it is known to have ended.
    """

    ticket: JobRecord
    points: "list[SweepPoint]"
    adopted: bool
    gone: float | None = None

    @property
    def folder(self) -> Path:
        """The folder of the points."""
        return self.points[0].run.folder

    @property
    def log(self) -> Path:
        """Where the job writes; the first of its tasks, if they are several."""
        return slurm_folder(self.folder.parent) / self.ticket.name / f"{self.ticket.job}_0_log.out"

    def entry(self, queue: Queue) -> QueueEntry | None:
        """The job in the queue."""
        return queue.get((self.ticket.name, self.ticket.index))


def slurm_folder(study: Path) -> Path:
    """Where a study's jobs have their logs, and its launchers their lock."""
    folder = study / ".slurm"
    private_folders.make_private_folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def submit_lock(study: Path) -> FileLock:
    """Held while jobs are looked up and submitted, so that no point is submitted twice."""
    return store.lock(slurm_folder(study) / "lock")


def wait_for_jobs(sweep: "Sweep", watched: list[WatchedJob]) -> "list[SweepPoint]":
    """Wait until all jobs ended, and tell of those that failed.

    Returns:
        The points that an adopted job was not asked for.
    """
    started, said, again = time.monotonic(), "", list["SweepPoint"]()
    while watched:
        try:
            there = read_queue()
        except QueueUnavailableError as error:
            words = " ".join(str(error).split())
        else:
            watched = [each for each in watched if not job_settled(each, there, sweep, again)]
            words = queue_summary(watched, there)
        if watched and words != said:
            print_slurm_line(said := words)
        if watched:
            time.sleep(min(30.0, max(1.0, (time.monotonic() - started) / 10)))
    return again


def job_settled(each: WatchedJob, queue: Queue, sweep: "Sweep", again: "list[SweepPoint]") -> bool:
    """Whether a job ended, and how its points are: done, failed, or to be run ``again``."""
    entry = each.entry(queue)
    if entry and entry.state in ("PENDING", "RUNNING"):
        each.gone = None
        return False
    left = [point for point in each.points if recording.finished_record(point.run) is None]
    if not left:
        return True
    if entry and entry.alive:
        return False
    each.gone = each.gone or time.monotonic()
    failed = state.read_failure(each.folder)
    if failed is None:
        if time.monotonic() < each.gone + GRACE_SECONDS:
            return False
        if each.adopted and state.read_record(each.folder):
            again += left
            return True
        record_lost_job(each, f"ended as {entry.state}" if entry else "is gone from the queue")
    if any(sweep.failed(point) for point in left) and failed:
        print_slurm_line(f"that was job {each.ticket.job}, which logs to {each.log}")
    return True


def record_lost_job(each: WatchedJob, how: str) -> None:
    """Note that a job left no word, unless the point has another job by now."""
    with submit_lock(each.folder.parent):
        if JobRecord.read(each.folder) == each.ticket:
            reason = f"SLURM job {each.ticket.job} {how} and left no record; its log is {each.log}"
            state.write_failure(each.folder, reason)


def queue_summary(watched: Sequence[WatchedJob], queue: Queue) -> str:
    """``2 running, 3 waiting (Resources)``, and how many of the others are looked for on the disk."""
    alive = [entry for each in watched if (entry := each.entry(queue)) and entry.alive]
    waiting = [entry for entry in alive if entry.state == "PENDING"]
    reasons = ", ".join(sorted({entry.reason for entry in waiting} - {"None"}))
    words = f"{len(alive) - len(waiting)} running, {len(waiting)} waiting" + (f" ({reasons})" if reasons else "")
    silent = len(watched) - len(alive)
    return words + (f", {silent} ended without a record so far" if silent else "")


def print_slurm_line(text: str) -> None:
    """Print one line for the user."""
    progress.print_line(f"slurm: {text}")
