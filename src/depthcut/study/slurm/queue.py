"""The SLURM jobs of a study: stored in their points' folders, looked up in the queue, waited for.

Their states come from ``squeue``. submitit would ask ``sacct``; without accounting, a killed job would then never end.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from depthcut.record import state
from depthcut.runtime import documents, private_folders, progress, store
from depthcut.study import recording
from depthcut.study.slurm.squeue import Queue, QueueEntry, QueueUnavailableError, read_queue

if TYPE_CHECKING:
    from depthcut.study.sweep import Sweep, SweepPoint

JOB_FILE = "job.json"
GRACE_SECONDS = 10.0
"""Seconds that a shared file system may need to show a job's last writes."""


@dataclass(frozen=True)
class JobRecord:
    """The SLURM job of a point, written to its folder before submission, where other launchers can find it.

    Attributes:
        name: unique name of the array.
        index: index of the job in the array.
        job: SLURM's job id, once known.
    """

    name: str
    index: int
    job: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "JobRecord | None":
        """Return the job last submitted for the point in ``folder``, or None."""
        found = documents.read_json_if_present(folder / JOB_FILE) or {}
        name, index, job = (found.get(key) for key in ("name", "index", "job"))
        if not isinstance(name, str) or not isinstance(index, int) or not isinstance(job, str | None):
            return None
        return cls(name, index, job)

    def write(self, folder: Path) -> "JobRecord":
        """Write the job to the point's folder, atomically."""
        store.write_json(folder / JOB_FILE, asdict(self))
        return self


@dataclass
class WatchedJob:
    """A job to wait for.

    Attributes:
        ticket: the job.
        points: its points of the sweep, which share a folder.
        adopted: whether another launcher submitted it, perhaps with fewer requests.
        gone: time since which it is known to have ended.
    """

    ticket: JobRecord
    points: "list[SweepPoint]"
    adopted: bool
    gone: float | None = None

    @property
    def folder(self) -> Path:
        """Folder of the points."""
        return self.points[0].run.folder

    @property
    def log(self) -> Path:
        """Log file of the job, or of its first task."""
        return slurm_folder(self.folder.parent) / self.ticket.name / f"{self.ticket.job}_0_log.out"

    def entry(self, queue: Queue) -> QueueEntry | None:
        """Return the job's entry in the queue, or None."""
        return queue.get((self.ticket.name, self.ticket.index))


def slurm_folder(study: Path) -> Path:
    """Return the folder of a study's job logs and launcher lock."""
    folder = study / ".slurm"
    private_folders.make_private_folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def submit_lock(study: Path) -> FileLock:
    """Return the lock for looking up and submitting jobs, which prevents a second submission of a point."""
    return store.lock(slurm_folder(study) / "lock")


def wait_for_jobs(sweep: "Sweep", watched: list[WatchedJob]) -> "list[SweepPoint]":
    """Wait until all jobs have ended, and report those that failed.

    Returns:
        The points with requests that an adopted job did not have.
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
    """Return whether a job has ended; its failures are reported, points to run again are added to ``again``."""
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
        record_lost_job(each, f"ended with state {entry.state}" if entry else "disappeared from the queue")
    if any(sweep.failed(point) for point in left) and failed:
        print_slurm_line(f"that was job {each.ticket.job}; its log: {each.log}")
    return True


def record_lost_job(each: WatchedJob, how: str) -> None:
    """Record that a job ended without a result, unless the point has another job by now."""
    with submit_lock(each.folder.parent):
        if JobRecord.read(each.folder) == each.ticket:
            reason = f"SLURM job {each.ticket.job} {how} without a record; its log: {each.log}"
            state.write_failure(each.folder, reason)


def queue_summary(watched: Sequence[WatchedJob], queue: Queue) -> str:
    """Return counts such as ``2 running, 3 waiting (Resources)``, and the jobs that ended without a record so far."""
    alive = [entry for each in watched if (entry := each.entry(queue)) and entry.alive]
    waiting = [entry for entry in alive if entry.state == "PENDING"]
    reasons = ", ".join(sorted({entry.reason for entry in waiting} - {"None"}))
    words = f"{len(alive) - len(waiting)} running, {len(waiting)} waiting" + (f" ({reasons})" if reasons else "")
    silent = len(watched) - len(alive)
    return words + (f", {silent} ended without a record so far" if silent else "")


def print_slurm_line(text: str) -> None:
    """Print one line for the user."""
    progress.print_line(f"slurm: {text}")
