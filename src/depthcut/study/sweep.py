"""A multirun as a whole: its points are enrolled before the first one runs, and counted after the last."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthcut.config import experiment
from depthcut.record import state
from depthcut.runtime import failures, progress
from depthcut.runtime.errors import UserError
from depthcut.study import recording
from depthcut.study.run import Run, open_run


@dataclass(frozen=True)
class SweepPoint:
    """One point of a multirun.

    Attributes:
        overrides: what was said of it, such as ``prune.frac=0.1``.
        words: of these, what was not said of all points.
        config: the composed config that its task gets.
        run: what it is; entered, not begun.
    """

    overrides: tuple[str, ...]
    words: str
    config: Mapping[Any, Any]
    run: Run


def done(point: SweepPoint) -> bool:
    """Return whether a point is done; one whose texts or model have gone meanwhile is not, and says so as it runs."""
    with failures.suppress_errors():
        return recording.finished_record(point.run) is not None
    return False


class UnfinishedError(UserError):
    """Some points of a sweep are not done."""

    status = 1


class Sweep:
    """The points of one multirun, and what is told of them.

    Attributes:
        points: those whose config holds no mistake; what was said twice is one point.
        mistakes: how many of the others there are.
    """

    def __init__(self) -> None:
        self.points: list[SweepPoint] = []
        self.mistakes = 0
        self.wanted: set[recording.PointRequirements] = set()
        self.told: set[Path] = set()
        self.unrecorded: set[Path] = set()  # failed before they could leave a failure.json

    def enrol(self, sayings: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], Mapping[Any, Any]]) -> None:
        """Read the config of each point and make its folder. A mistake is told at once, and the others go on."""
        common = set(sayings[0]).intersection(*sayings) if len(sayings) > 1 else set[str]()
        for overrides in sayings:
            words = " ".join(each for each in overrides if each not in common)
            try:
                x = experiment.build_experiment(composed := compose(overrides))
                experiment.require_tasks_of_command_line(x, overrides)
                self.add(SweepPoint(tuple(overrides), words, composed, open_run(x)))
            except failures.STOPS:
                raise
            except BaseException as error:
                self.mistakes += 1
                failures.print_error(f"{words}: {failures.error_line(error)}")

    def add(self, point: SweepPoint) -> None:
        """Take a point in, unless it is one of those that are in."""
        wanted = recording.point_requirements(point.run)
        if wanted not in self.wanted:
            recording.register_point(point.run)
            self.wanted.add(wanted)
            self.points.append(point)

    def left(self) -> list[SweepPoint]:
        """The points that are not done."""
        return [point for point in self.points if not done(point)]

    def open(self) -> list[SweepPoint]:
        """The points that are to be run now; what is done already is said in one line."""
        left = self.left()
        done = len(self.points) - len(left)
        for point in self.points:
            if point not in left:
                state.forget_failure(point.run.folder)
        if done:
            progress.print_line(f"{done} of {len(self.points)} points are done already; their records are on file")
        return left

    def run(self, point: SweepPoint, task: Callable[[Mapping[Any, Any]], Any]) -> None:
        """Run a point here; how it failed is told at once, and the next one can have its turn."""
        before = len(failures.collected_errors)
        state.forget_failure(point.run.folder)
        task(point.config)
        if not self.failed(point):
            for fault in failures.collected_errors[before:]:
                failures.print_error(f"{point.words}: {failures.error_line(fault)}")
                self.unrecorded.add(point.run.folder)
        del failures.collected_errors[before:]

    def failed(self, point: SweepPoint) -> bool:
        """Whether the last attempt at a point failed; the reason is told the first time that this is asked."""
        folder = point.run.folder
        found = state.read_failure(folder)
        if found and folder not in self.told:
            self.told.add(folder)
            failures.print_error(f"{point.words}: {found['reason']} ({folder / recording.FAILURE})")
        return found is not None or folder in self.unrecorded

    def close(self) -> None:
        """Say how the sweep ended.

        Raises:
            UnfinishedError: if a point failed or is left.
        """
        left = self.left()
        counts = self.counts(left)
        if left:
            also = "; correct the config of the others" if self.mistakes else ""
            raise UnfinishedError(f"{counts}; give the same command again to run those that are not done{also}")
        if self.mistakes:
            raise UnfinishedError(f"{counts}; correct what is named above")
        progress.print_line(f"{counts}: python -m depthcut.report {self.points[0].run.study}")

    def stop(self) -> KeyboardInterrupt:
        """Return what to raise after Ctrl-C: it says how far the sweep came."""
        counts = self.counts(self.left())
        return KeyboardInterrupt(f"{counts}; give the same command again to resume")

    def counts(self, left: Sequence[SweepPoint]) -> str:
        """Return how many points are done, failed and left, in words."""
        failed = sum(self.failed(point) for point in left)
        asked = len(self.points) + self.mistakes
        records = [state.read_record(folder) or {} for folder in {point.run.folder for point in self.points}]
        diverged = sum(each.get("status") == "diverged" for each in records)
        return (
            f"{asked - len(left) - self.mistakes} of {asked} points are done, {failed + self.mistakes} failed, "
            f"{len(left) - failed} are left" + (f", {diverged} diverged: a loss is not finite" if diverged else "")
        )
