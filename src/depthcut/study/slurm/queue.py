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

from depthcut.runtime import documents, private_folders, store
from depthcut.runtime.errors import UserError
from depthcut.study import recording, runlog

if TYPE_CHECKING:
    from depthcut.study.sweep import Point, Sweep

TICKET = "job.json"
GRACE = 10.0
"""Seconds that a shared file system may need to show what a job wrote last."""
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)


@dataclass(frozen=True)
class Ticket:
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
    def read(cls, folder: Path) -> "Ticket | None":
        """The job that was last submitted for the point in ``folder``."""
        found = documents.found(folder / TICKET) or {}
        name, index, job = (found.get(key) for key in ("name", "index", "job"))
        if not isinstance(name, str) or not isinstance(index, int) or not isinstance(job, str | None):
            return None
        return cls(name, index, job)

    def write(self, folder: Path) -> "Ticket":
        """Note it in the point's folder, durably."""
        store.write_json(folder / TICKET, asdict(self))
        return self


@dataclass(frozen=True)
class Entry:
    """A job as ``squeue`` lists it: its number, its state and, while it waits, what for."""

    job: str
    state: str
    reason: str

    @property
    def alive(self) -> bool:
        """Whether it waits, runs, or is between the two. A state that is not known counts, until the job is gone."""
        return self.state not in ENDED


class SilentError(UserError):
    """``squeue`` gave no answer, which says nothing about the jobs."""


Queue = dict[tuple[str, int], Entry]


def queue() -> Queue:
    """This user's jobs, by the name and index of their tickets; those that ended a short while ago too.

    Raises:
        SilentError: if the cluster does not answer.
    """
    call = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%j|%r"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        done = subprocess.run(call, check=True, capture_output=True, text=True, timeout=120, env=plain)
    except subprocess.CalledProcessError as error:
        raise SilentError(f"squeue does not answer, which says nothing about the jobs: {error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise SilentError("squeue does not answer within 2 minutes") from error
    return entries(done.stdout.splitlines())


def entries(lines: Iterable[str]) -> Queue:
    """Read ``26_3|RUNNING|main-1f0a9c3e|None`` and its like; a job that is no part of an array has index 0."""
    found: Queue = {}
    for line in lines:
        job, state, name, reason = line.split("|", 3)
        index = job.partition("_")[2] or "0"
        if index.isdigit():
            found[name, int(index)] = Entry(job, state, reason)
    return found


@dataclass
class Watched:
    """A job that is waited for.

    Attributes:
        ticket: the job.
        points: those of the sweep that it is to run; they share a folder.
        adopted: whether another launcher submitted it, which may have asked for less.
        gone: since when it is known to have ended.
    """

    ticket: Ticket
    points: "list[Point]"
    adopted: bool
    gone: float | None = None

    @property
    def folder(self) -> Path:
        """The folder of the points."""
        return self.points[0].lab.folder

    @property
    def log(self) -> Path:
        """Where the job writes; the first of its tasks, if they are several."""
        return private(self.folder.parent) / self.ticket.name / f"{self.ticket.job}_0_log.out"

    def entry(self, queue: Queue) -> Entry | None:
        """The job in the queue."""
        return queue.get((self.ticket.name, self.ticket.index))


def private(study: Path) -> Path:
    """Where a study's jobs have their logs, and its launchers their lock."""
    folder = study / ".slurm"
    private_folders.make(study)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def alone(study: Path) -> FileLock:
    """Held while jobs are looked up and submitted, so that no point is submitted twice."""
    return store.lock(private(study) / "lock")


def watch(sweep: "Sweep", watched: list[Watched]) -> "list[Point]":
    """Wait until all jobs ended, and tell of those that failed.

    Returns:
        The points that an adopted job was not asked for.
    """
    started, said, again = time.monotonic(), "", list["Point"]()
    while watched:
        try:
            there = queue()
        except SilentError as error:
            words = " ".join(str(error).split())
        else:
            watched = [each for each in watched if not over(each, there, sweep, again)]
            words = tally(watched, there)
        if watched and words != said:
            say(said := words)
        if watched:
            time.sleep(min(30.0, max(1.0, (time.monotonic() - started) / 10)))
    return again


def over(each: Watched, queue: Queue, sweep: "Sweep", again: "list[Point]") -> bool:
    """Whether a job ended, and how its points are: done, failed, or to be run ``again``."""
    entry = each.entry(queue)
    if entry and entry.state in ("PENDING", "RUNNING"):
        each.gone = None
        return False
    left = [point for point in each.points if recording.finished(point.lab) is None]
    if not left:
        return True
    if entry and entry.alive:
        return False
    each.gone = each.gone or time.monotonic()
    failed = recording.failure(each.folder)
    if failed is None:
        if time.monotonic() < each.gone + GRACE:
            return False
        if each.adopted and recording.read(each.folder):
            again += left
            return True
        lost(each, f"ended as {entry.state}" if entry else "is gone from the queue")
    if any(sweep.failed(point) for point in left) and failed:
        say(f"that was job {each.ticket.job}, which logs to {each.log}")
    return True


def lost(each: Watched, how: str) -> None:
    """Note that a job left no word, unless the point has another job by now."""
    with alone(each.folder.parent):
        if Ticket.read(each.folder) == each.ticket:
            reason = f"SLURM job {each.ticket.job} {how} and left no record; its log is {each.log}"
            recording.fail(each.folder, reason)


def tally(watched: Sequence[Watched], queue: Queue) -> str:
    """``2 running, 3 waiting (Resources)``, and how many of the others are looked for on the disk."""
    alive = [entry for each in watched if (entry := each.entry(queue)) and entry.alive]
    waiting = [entry for entry in alive if entry.state == "PENDING"]
    reasons = ", ".join(sorted({entry.reason for entry in waiting} - {"None"}))
    words = f"{len(alive) - len(waiting)} running, {len(waiting)} waiting" + (f" ({reasons})" if reasons else "")
    silent = len(watched) - len(alive)
    return words + (f", {silent} ended without a record so far" if silent else "")


def say(text: str) -> None:
    """Print one line for the user."""
    runlog.say(f"slurm: {text}")
