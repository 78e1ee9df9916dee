"""The jobs of SLURM's queue, as squeue lists them."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    pass

ENDED_STATES = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)


@dataclass(frozen=True)
class QueueEntry:
    """A job in the output of ``squeue``: its id, its state and, if it waits, the reason."""

    job: str
    state: str
    reason: str

    @property
    def alive(self) -> bool:
        """True if it waits, runs, or is between the two; an unknown state counts as alive while the job is listed."""
        return self.state not in ENDED_STATES


class QueueUnavailableError(UserError):
    """``squeue`` did not answer; the jobs may still run."""


Queue = dict[tuple[str, int], QueueEntry]


def read_queue() -> Queue:
    """Return this user's jobs, including recently ended ones, by the name and index of their records.

    Raises:
        QueueUnavailableError: if the cluster does not answer.
    """
    call = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%j|%r"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        done = subprocess.run(call, check=True, capture_output=True, text=True, timeout=120, env=plain)
    except subprocess.CalledProcessError as error:
        raise QueueUnavailableError(f"squeue failed, so the state of the jobs is unknown: {error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise QueueUnavailableError("squeue did not respond within 2 minutes") from error
    return parse_queue(done.stdout.splitlines())


def parse_queue(lines: Iterable[str]) -> Queue:
    """Parse lines such as ``26_3|RUNNING|main-1f0a9c3e|None``; a job outside of an array has index 0."""
    found: Queue = {}
    for line in lines:
        job, state, name, reason = line.split("|", 3)
        index = job.partition("_")[2] or "0"
        if index.isdigit():
            found[name, int(index)] = QueueEntry(job, state, reason)
    return found
