"""``hydra/launcher=curve``: what the points of a multirun can share is computed first, then each runs as usual."""

from typing import TYPE_CHECKING

from hydra_plugins.depthcut_launchers.local import LocalLauncher

if TYPE_CHECKING:
    from depthcut.sweep import Point, Sweep


class CurveLauncher(LocalLauncher):
    """The local launcher, behind :func:`depthcut.curve.share`."""

    def run(self, sweep: "Sweep", points: "list[Point]") -> None:
        """Share the points' passes, then run them; one whose healing failed meanwhile has had its turn."""
        from depthcut import complaints, curve

        with complaints.noted():
            failed = curve.share([point.config for point in points])
            points = [point for point in points if point.lab.folder not in failed]
        super().run(sweep, points)
