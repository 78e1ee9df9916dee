"""What depthcut's launchers have in common: all points are composed and enrolled, then those that are left are run."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override

if TYPE_CHECKING:
    from depthcut.sweep import Point, Sweep


class Points(Launcher):
    """A launcher that knows what its points are before it runs one."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra gives."""
        hydra_context.config_loader = cast(ConfigLoader, Once(hydra_context.config_loader))
        self.hydra_context, self.task, self.config = hydra_context, task_function, config
        with flag_override(config, ["readonly", "struct"], False):  # Hydra's sweeper makes this folder as it is written
            config.hydra.sweep.dir = os.path.expanduser(config.hydra.sweep.dir)  # noqa: PTH111

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Enrol the points of ``job_overrides``, run those that are not done, tell how it ended."""
        from depthcut import complaints
        from depthcut.sweep import Sweep

        del initial_job_idx
        setup_globals()
        sweep = Sweep()
        with complaints.noted():
            sweep.enrol(job_overrides, self.composed)
            try:
                self.run(sweep, sweep.open())
            except KeyboardInterrupt:
                raise sweep.stop() from None
            sweep.close()
        return [ended(overrides) for overrides in job_overrides]

    @abstractmethod
    def run(self, sweep: "Sweep", points: "list[Point]") -> None:
        """Run ``points``; each leaves its record, or why it failed, in its folder."""

    def composed(self, overrides: Sequence[str]) -> DictConfig:
        """A point's config as its task gets it."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with flag_override(config, ["readonly", "struct"], False):
            del config["hydra"]
        return config


class Once:
    """A config loader that composes no point twice: Hydra's sweeper does, to check them, before they are launched."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """A point's config, which the next one to ask gets too, and may change."""
        key = tuple(sweep_overrides)
        if key in self.composed:
            return self.composed.pop(key)
        self.composed[key] = self.loader.load_sweep_config(master_config, sweep_overrides)
        return self.composed[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def ended(overrides: Sequence[str]) -> JobReturn:
    """What Hydra's sweeper wants to hear of a point; how it ended stands in its folder."""
    job = JobReturn(overrides=OmegaConf.create(list(overrides)))  # pyright: ignore[reportArgumentType]
    job.status = JobStatus.COMPLETED
    job.return_value = None
    return job
