"""A point as a SLURM job: its resources, and its work.

submitit submits it and, before it runs out of time, requeues it.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from depthcut.record import state
from depthcut.runtime import failures
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

LAUNCHER_OPTIONS = frozenset({"array", "error", "job-name", "open-mode", "output", "requeue", "signal"})
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Line = Annotated[str, Field(pattern=r"^[^\r\n\x00]+$")]
"""Text that occupies one line of the batch script."""
Option = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]


@strict
class JobRequest:
    """Resources of each job of a sweep, and how the sweep uses it; ``docs/slurm.md`` explains each option.

    Attributes:
        partition, account, qos, constraint: options of ``sbatch``; None leaves them to the cluster.
        nodes, tasks_per_node, cpus_per_task, gpus_per_node: resources of one point.
        mem_gb: memory per node; None leaves it to the cluster.
        timeout_min: minutes that a job may run before it is requeued.
        signal_delay_s: seconds between the warning signal and the time limit.
        max_timeouts: how often a point that ran out of time is requeued; preemptions are not counted.
        array_parallelism: maximum number of simultaneous jobs.
        setup: shell lines to run before Python starts.
        additional_parameters: further options of ``sbatch``, by name.
        wait: whether the command waits until all points have ended.
    """

    partition: Line | None
    account: Line | None
    qos: Line | None
    constraint: Line | None
    nodes: Count
    tasks_per_node: Count
    cpus_per_task: Count
    gpus_per_node: Annotated[int, Field(ge=0, le=1024)]
    mem_gb: Annotated[float | None, Field(ge=0.001, le=100_000)]
    timeout_min: Count
    signal_delay_s: Count
    max_timeouts: Annotated[int, Field(ge=0, le=10_000)]
    array_parallelism: Count
    setup: list[Line]
    additional_parameters: dict[Option, Line | int | float | bool]
    wait: bool

    def __post_init__(self) -> None:
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise UserError(
                f"hydra.launcher.signal_delay_s must be below the time limit of {60 * self.timeout_min} s "
                f"(timeout_min={self.timeout_min}), got {self.signal_delay_s}"
            )
        taken = sorted(LAUNCHER_OPTIONS & {key.replace("_", "-") for key in self.additional_parameters})
        if taken:
            raise UserError(f"hydra.launcher.additional_parameters.{taken[0]}: the launcher sets this itself")

    @property
    def parameters(self) -> dict[str, Any]:
        """The request under submitit's names."""
        return {
            **{key: getattr(self, key) for key in ("partition", "account", "qos", "constraint", "nodes", "setup")},
            "ntasks_per_node": self.tasks_per_node,
            "cpus_per_task": self.cpus_per_task,
            "gpus_per_node": self.gpus_per_node or None,
            "mem": f"{round(1024 * self.mem_gb)}MB" if self.mem_gb else None,
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "wckey": None,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **self.additional_parameters},
            # Since SLURM 22.05 a step does not inherit cpus_per_task. A killed task must not leave others waiting.
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}", "--kill-on-bad-exit=1"],
        }


def require_slurm() -> None:
    """Refuse a machine that cannot submit jobs.

    Raises:
        UserError: if SLURM's commands are not on the PATH.
    """
    missing = [command for command in ("sbatch", "squeue", "srun") if shutil.which(command) is None]
    if missing:
        raise UserError(
            f"hydra/launcher=slurm: {missing[0]} is not on the PATH. Run the command where jobs can be "
            "submitted, or use hydra/launcher=local"
        )


@dataclass(frozen=True)
class PointTask:
    """The work of a job: the points of one folder, with configs composed when the sweep was launched.

    Attributes:
        task: runs one point.
        folder: folder of the points.
        configs: composed configs; several if points differ only in measurements or exports.
    """

    task: Callable[[dict[str, Any]], None]
    folder: Path
    configs: list[dict[str, Any]]

    def __call__(self) -> None:
        """Run the points; a failure also fails the job, and its reason is in the folder even if no point began."""
        first: BaseException | None = None
        for config in self.configs:
            try:
                self.task(config)
            except failures.STOPS:
                raise
            except BaseException as error:
                first = first or error
        if first is not None:
            if state.read_failure(self.folder) is None:
                state.write_failure(self.folder, failures.error_line(first), first)
            raise first

    def checkpoint(self) -> "DelayedSubmission":
        """Return the work of the requeued job, which is the same: finished parts are on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
