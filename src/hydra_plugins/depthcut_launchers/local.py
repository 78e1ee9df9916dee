"""``hydra/launcher=local``: the points of a multirun one after the other, in this process."""

from typing import TYPE_CHECKING

from hydra_plugins.depthcut_launchers.points import Points

if TYPE_CHECKING:
    from depthcut.sweep import Point, Sweep


class LocalLauncher(Points):
    """Runs points here."""

    def run(self, sweep: "Sweep", points: "list[Point]") -> None:
        """Run one point after the other; one that fails does not stop the others."""
        from depthcut import runlog

        for number, point in enumerate(points, 1):
            runlog.say(f"point {number} of {len(points)}: {point.words}")
            sweep.run(point, self.task)
