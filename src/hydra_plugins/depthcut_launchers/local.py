"""``hydra/launcher=local``: the points of a multirun one after the other, in this process."""

from typing import TYPE_CHECKING

from hydra_plugins.depthcut_launchers.points import SweepLauncher

if TYPE_CHECKING:
    from depthcut.study.sweep import Sweep, SweepPoint


class LocalLauncher(SweepLauncher):
    """Runs points here."""

    def run(self, sweep: "Sweep", points: "list[SweepPoint]") -> None:
        """Run one point after the other; one that fails does not stop the others."""
        from depthcut.runtime import progress

        for point in points:
            progress.print_line(f"point {sweep.points.index(point) + 1} of {len(sweep.points)}: {point.words}")
            sweep.run(point, self.task)
