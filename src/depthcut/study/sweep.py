"""A multirun: its points are registered before the first one runs, and counted after the last."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthcut.config import build
from depthcut.record import state
from depthcut.runtime import failures, progress
from depthcut.runtime.errors import UserError
from depthcut.study import recording
from depthcut.study.run import Run, open_run


@dataclass(frozen=True)
class SweepPoint:
    """One point of a multirun.

    Attributes:
        overrides: its overrides, such as ``prune.frac=0.1``.
        words: the overrides that not all points share.
        config: the composed config for its task.
        run: its run, registered but not started.
    """

    overrides: tuple[str, ...]
    words: str
    config: Mapping[Any, Any]
    run: Run


def done(point: SweepPoint) -> bool:
    """Return whether a point is done; a point whose texts or model have disappeared is not, and fails when it runs."""
    with failures.suppress_errors():
        return recording.finished_record(point.run) is not None
    return False


class UnfinishedError(UserError):
    """Unfinished points of a sweep."""

    status = 1


class Sweep:
    """The points of one multirun, and their results.

    Attributes:
        points: the points with a valid config, without duplicates.
        mistakes: number of points with an invalid config.
    """

    def __init__(self) -> None:
        self.points: list[SweepPoint] = []
        self.mistakes = 0
        self.wanted: set[recording.PointRequirements] = set()
        self.told: set[Path] = set()
        self.unrecorded: set[Path] = set()  # failed before they could write failure.json

    def enrol(
        self, override_lists: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], Mapping[Any, Any]]
    ) -> None:
        """Compose and check the config of each point and create its folder; report and skip invalid ones."""
        common = set(override_lists[0]).intersection(*override_lists) if len(override_lists) > 1 else set[str]()
        for overrides in override_lists:
            words = " ".join(each for each in overrides if each not in common)
            try:
                x = build.build_experiment(composed := compose(overrides))
                build.require_tasks_of_command_line(x, overrides)
                self.add(SweepPoint(tuple(overrides), words, composed, open_run(x)))
            except failures.STOPS:
                raise
            except BaseException as error:
                self.mistakes += 1
                failures.print_error(f"{words}: {failures.error_line(error)}")

    def add(self, point: SweepPoint) -> None:
        """Add a point, unless it is a duplicate."""
        wanted = recording.point_requirements(point.run)
        if wanted not in self.wanted:
            recording.register_point(point.run)
            self.wanted.add(wanted)
            self.points.append(point)

    def left(self) -> list[SweepPoint]:
        """Return the unfinished points."""
        return [point for point in self.points if not done(point)]

    def open(self) -> list[SweepPoint]:
        """Return the points to run; print the number of points already done."""
        left = self.left()
        done = len(self.points) - len(left)
        for point in self.points:
            if point not in left:
                state.forget_failure(point.run.folder)
        if done:
            progress.print_line(f"{done} of {len(self.points)} points already done; their records are on disk")
        return left

    def run(self, point: SweepPoint, task: Callable[[Mapping[Any, Any]], Any]) -> None:
        """Run a point in this process; report a failure at once, without stopping the sweep."""
        state.forget_failure(point.run.folder)
        try:
            task(point.config)
        except failures.STOPS:
            raise
        except BaseException as error:
            if not self.failed(point):
                failures.print_error(f"{point.words}: {failures.error_line(error)}")
                self.unrecorded.add(point.run.folder)

    def failed(self, point: SweepPoint) -> bool:
        """Return whether the last attempt at a point failed; the first call prints the reason."""
        folder = point.run.folder
        found = state.read_failure(folder)
        if found and folder not in self.told:
            self.told.add(folder)
            failures.print_error(f"{point.words}: {found['reason']} ({folder / recording.FAILURE})")
        return found is not None or folder in self.unrecorded

    def close(self) -> None:
        """Print the result of the sweep.

        Raises:
            UnfinishedError: if a point failed or is unfinished.
        """
        left = self.left()
        counts = self.counts(left)
        if left:
            also = ". Correct the config of the others" if self.mistakes else ""
            raise UnfinishedError(f"{counts}. Run the same command again to continue{also}")
        if self.mistakes:
            raise UnfinishedError(f"{counts}. Correct the errors above")
        progress.print_line(f"{counts}: python -m depthcut.report {self.points[0].run.study}")

    def stop(self) -> KeyboardInterrupt:
        """Return the exception to raise after Ctrl-C, with the progress of the sweep."""
        counts = self.counts(self.left())
        return KeyboardInterrupt(f"{counts}. Run the same command again to continue")

    def counts(self, left: Sequence[SweepPoint]) -> str:
        """Return the numbers of points done, failed and left, in words."""
        failed = sum(self.failed(point) for point in left)
        asked = len(self.points) + self.mistakes
        records = [state.read_record(folder) or {} for folder in {point.run.folder for point in self.points}]
        diverged = sum(each.get("status") == "diverged" for each in records)
        return (
            f"{asked - len(left) - self.mistakes} of {asked} points done, {failed + self.mistakes} failed, "
            f"{len(left) - failed} remaining" + (f", {diverged} diverged (a loss is not finite)" if diverged else "")
        )
