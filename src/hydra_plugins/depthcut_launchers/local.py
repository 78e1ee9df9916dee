"""``hydra/launcher=local``: runs the points of a multirun one by one in this process."""

from typing import TYPE_CHECKING

from hydra_plugins.depthcut_launchers.points import SweepLauncher

if TYPE_CHECKING:
    from depthcut.study.sweep import Sweep, SweepPoint


class LocalLauncher(SweepLauncher):
    """A launcher that runs points in this process."""

    def run(self, sweep: "Sweep", points: "list[SweepPoint]") -> None:
        """Run the points one by one; a failed point does not stop the others."""
        from depthcut.runtime import progress

        for point in points:
            progress.print_line(f"point {sweep.points.index(point) + 1} of {len(sweep.points)}: {point.words}")
            sweep.run(point, self.task)
