"""``hydra/launcher=curve``: what the points of a multirun can share is computed first, then each runs as usual."""

from typing import TYPE_CHECKING

from hydra_plugins.depthcut_launchers.local import LocalLauncher

if TYPE_CHECKING:
    from depthcut.study.sweep import Sweep, SweepPoint


class CurveLauncher(LocalLauncher):
    """The local launcher, behind :func:`depthcut.study.curve.share_passes`."""

    def run(self, sweep: "Sweep", points: "list[SweepPoint]") -> None:
        """Share the points' passes, then run them; one whose healing failed meanwhile has had its turn."""
        from depthcut.runtime import failures
        from depthcut.study import curve

        with failures.collect_errors():
            failed = curve.share_passes([point.config for point in points])
            points = [point for point in points if point.run.folder not in failed]
        super().run(sweep, points)
