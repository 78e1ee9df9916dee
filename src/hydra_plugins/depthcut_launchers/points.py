"""Base of depthcut's launchers: all points are composed and registered, then the unfinished ones run."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from depthcut.study.sweep import Sweep, SweepPoint


class SweepLauncher(Launcher):
    """A launcher that composes all points before it runs one."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context, task function and config."""
        self.hydra_context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Register the points of ``job_overrides``, run the unfinished ones, and print the result."""
        from depthcut.study.sweep import Sweep

        del initial_job_idx
        sweep = Sweep()
        sweep.enrol(job_overrides, self.composed)
        try:
            self.run(sweep, sweep.open())
        except KeyboardInterrupt:
            raise sweep.stop() from None
        sweep.close()
        return [completed_job(overrides) for overrides in job_overrides]

    @abstractmethod
    def run(self, sweep: "Sweep", points: "list[SweepPoint]") -> None:
        """Run ``points``; each writes its record, or the reason of its failure, to its folder."""

    def composed(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of a point for its task."""
        from depthcut.cli.composition import without_hydra

        return without_hydra(self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides)))


def completed_job(overrides: Sequence[str]) -> JobReturn:
    """Return a point's result for Hydra's sweeper; the real outcome is in the point's folder."""
    job = JobReturn(overrides=OmegaConf.create(list(overrides)))  # pyright: ignore[reportArgumentType]
    job.status = JobStatus.COMPLETED
    job.return_value = None
    return job
