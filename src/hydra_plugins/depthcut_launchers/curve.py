"""``hydra/launcher=curve``: what the points of a multirun can share is computed first, then each runs as usual."""

from typing import TYPE_CHECKING

from hydra_plugins.depthcut_launchers.local import LocalLauncher

if TYPE_CHECKING:
    from depthcut.sweep import Point, Sweep


class CurveLauncher(LocalLauncher):
    """The local launcher, behind :func:`depthcut.curve.share`."""

    def run(self, sweep: "Sweep", points: "list[Point]") -> None:
        """Share the points' passes, then run them."""
        from depthcut import complaints, curve

        with complaints.noted():
            curve.share([point.config for point in points])
        super().run(sweep, points)
