"""``hydra/launcher=curve``: what the points of a multirun can share is computed first, then each runs as usual."""

from collections.abc import Sequence

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override


class CurveLauncher(Launcher):
    """Hydra's basic launcher, behind :func:`depthcut.curve.share`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra gives."""
        self.hydra_context, self.config = hydra_context, config
        basic = OmegaConf.create({"hydra": {"launcher": {"_target_": BASIC}}})
        self.basic = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context,
            task_function=task_function,
            config=OmegaConf.merge(config, basic),  # pyright: ignore[reportArgumentType]
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose all points, share their passes, run them."""
        from depthcut import complaints, curve

        with complaints.noted():
            curve.share([self.composed(overrides) for overrides in job_overrides])
        return self.basic.launch(job_overrides, initial_job_idx)

    def composed(self, overrides: Sequence[str]) -> DictConfig:
        """A point's config as its task gets it."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with flag_override(config, ["readonly", "struct"], False):
            del config["hydra"]
        return config


BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
