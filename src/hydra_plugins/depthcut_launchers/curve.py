"""``hydra/launcher=curve``: runs the shared parts of a multirun's points first, then each point."""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra_plugins.depthcut_launchers.local import LocalLauncher

if TYPE_CHECKING:
    from depthcut.study.sweep import Sweep, SweepPoint


class CurveLauncher(LocalLauncher):
    """The local launcher, preceded by :func:`depthcut.study.curve.share_passes`."""

    def run(self, sweep: "Sweep", points: "list[SweepPoint]") -> None:
        """Run the points' shared passes, then the points, except for those whose healing already failed."""
        from depthcut.runtime import failures
        from depthcut.study import curve

        try:
            failed = curve.share_passes([point.config for point in points])
        except failures.STOPS:
            raise
        except BaseException as error:  # each point can run without them
            failures.report_error(error)
            failed = set[Path]()
        points = [point for point in points if point.run.folder not in failed]
        super().run(sweep, points)
