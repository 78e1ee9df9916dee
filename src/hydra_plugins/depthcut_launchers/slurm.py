"""``hydra/launcher=slurm``: the points of a multirun as one array of SLURM jobs, which outlive the launcher."""

import contextlib
import io
import os
import secrets
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from depthcut.runtime.errors import UserError
from hydra_plugins.depthcut_launchers.points import SweepLauncher

if TYPE_CHECKING:
    from depthcut.study.slurm.job import JobRequest, PointTask
    from depthcut.study.slurm.queue import WatchedJob
    from depthcut.study.sweep import Sweep, SweepPoint


class SlurmLauncher(SweepLauncher):
    """Submits all points that are neither done nor queued, and waits for them."""

    def __init__(self, **knobs: Any) -> None:
        self.knobs = knobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's arguments; the requested resources are validated before a point is composed."""
        from depthcut.config.methods import construct_validated
        from depthcut.study.slurm import job as slurm_job

        self.request: JobRequest = construct_validated("hydra.launcher", slurm_job.JobRequest, self.knobs)
        slurm_job.require_slurm()
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def run(self, sweep: "Sweep", points: "list[SweepPoint]") -> None:
        """Submit the points and wait; requests that another launcher's job did not have are submitted afterwards."""
        from depthcut.study.slurm import queue as slurm_queue

        while points:
            watched = [each for study in group_points(points, "study").values() for each in self.enqueue(study)]
            if watched and not self.request.wait:
                slurm_queue.print_slurm_line("the jobs continue; run the same command again to follow them")
                sys.exit(1 if sweep.mistakes else 0)
            try:
                points = slurm_queue.wait_for_jobs(sweep, watched)
            except KeyboardInterrupt:
                slurm_queue.print_slurm_line(f"the jobs continue; to cancel them: scancel {array_ids(watched)}")
                raise

    def enqueue(self, points: "list[SweepPoint]") -> "list[WatchedJob]":
        """Return a job for each of these points of one study: the queued one, or a new one.

        Raises:
            UserError: if SLURM does not answer, or refuses the jobs.
        """
        from depthcut.study import recording
        from depthcut.study.slurm import queue as slurm_queue
        from depthcut.study.slurm import squeue
        from depthcut.study.slurm.queue import JobRecord, WatchedJob

        study = points[0].run.study
        with slurm_queue.submit_lock(study):
            queue = squeue.read_queue()
            there: list[WatchedJob] = []
            new: dict[Path, list[SweepPoint]] = {}
            for folder, group in group_points(points, "folder").items():
                ticket = JobRecord.read(folder)
                entry = ticket and queue.get((ticket.name, ticket.index))
                if ticket and entry and entry.alive:
                    ticket = JobRecord(ticket.name, ticket.index, entry.job).write(folder)
                    there.append(WatchedJob(ticket, group, adopted=True))
                elif any(recording.finished_record(point.run) is None for point in group):
                    new[folder] = group
            if there:
                slurm_queue.print_slurm_line(f"{len(there)} already in the queue, as job {array_ids(there)}")
            return there + (self.submit(study, new) if new else [])

    def submit(self, study: Path, groups: "dict[Path, list[SweepPoint]]") -> "list[WatchedJob]":
        """Submit one array, and write its job records before and after; the caller holds the study's lock.

        Raises:
            UserError: if SLURM refuses.
        """
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        from depthcut.study import recording
        from depthcut.study.slurm import queue as slurm_queue
        from depthcut.study.slurm.queue import JobRecord, WatchedJob

        name = f"{study.name}-{secrets.token_hex(4)}"
        logs = slurm_queue.slurm_folder(study) / name
        executor = SlurmExecutor(logs, max_num_timeout=self.request.max_timeouts)
        executor.update_parameters(job_name=name, **self.request.parameters)
        for index, folder in enumerate(groups):
            JobRecord(name, index).write(folder)
            (folder / recording.FAILURE).unlink(missing_ok=True)
        try:
            with outside_job(), contextlib.redirect_stderr(io.StringIO()):
                submitted = executor.submit_array([self.work(group) for group in groups.values()])
        except FailedJobError as error:
            for folder in groups:
                (folder / slurm_queue.JOB_FILE).unlink()
            shutil.rmtree(logs)
            raise UserError(f"SLURM refused the jobs: {error}") from error
        tickets = [JobRecord(name, index, job.job_id) for index, job in enumerate(submitted)]
        watched = [
            WatchedJob(ticket.write(folder), group, adopted=False)
            for ticket, (folder, group) in zip(tickets, groups.items(), strict=True)
        ]
        slurm_queue.print_slurm_line(f"{len(watched)} submitted as job {array_ids(watched)}; logs: {logs}")
        return watched

    def work(self, points: "list[SweepPoint]") -> "PointTask":
        """Return the work of the job for these points."""
        from depthcut.study.slurm.job import PointTask

        task: Any = self.task  # also takes plain dictionaries
        return PointTask(task, points[0].run.folder, [point.run.config for point in points])


@contextlib.contextmanager
def outside_job() -> Generator[None]:
    """Hide the variables of an enclosing job, so a sweep can be launched in one; the user's sbatch settings stay."""
    from submitit.helpers import clean_env

    kept = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or key.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield


def group_points(points: "list[SweepPoint]", what: str) -> "dict[Path, list[SweepPoint]]":
    """Group points by ``study`` or ``folder``; points that differ only in measurements share a folder."""
    found: dict[Path, list[SweepPoint]] = {}
    for point in points:
        found.setdefault(getattr(point.run, what), []).append(point)
    return found


def array_ids(watched: "list[WatchedJob]") -> str:
    """Return the ids of the arrays of these jobs, for ``scancel``."""
    return " ".join(sorted({str(each.ticket.job).partition("_")[0] for each in watched}))
