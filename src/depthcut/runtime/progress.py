"""Progress: a bar with the remaining time in a terminal, and occasional lines in the log."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from depthcut.runtime import ranks

T = TypeVar("T")
PERIOD = 30.0  # seconds between log lines
MEMORY = 3600.0  # seconds of steps for the estimate of the remaining time; a step may take minutes
log = logging.getLogger("depthcut")
console = Console(stderr=True, quiet=ranks.global_rank() > 0)


class Meter:
    """A step counter with a line of figures: a bar in a terminal, and occasional log lines.

    In a terminal the log lines go to files only, because the bar shows the same.

    Args:
        what: name of the work.
        total: total number of steps.
        done: steps done by an earlier process.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what = what
        self.total = total
        self.done = done
        self.logged = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            *columns,
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            speed_estimate_period=MEMORY,
        )
        self.bar.disable = not console.is_terminal
        self.task = self.bar.add_task(what, total=total, completed=done, figures="")

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, figures: str = "") -> None:
        """Count one step."""
        self.reach(self.done + 1, figures)

    def reach(self, done: int, figures: str = "") -> None:
        """Count up to ``done`` steps."""
        before, self.done = self.done, done
        self.bar.update(self.task, completed=done, figures=figures)
        if time.monotonic() - self.logged > PERIOD or before < self.total == done:
            self.logged = time.monotonic()
            level = logging.INFO if self.bar.disable else logging.DEBUG
            log.log(level, "%s: %d of %d %s", self.what, done, self.total, figures)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield ``items`` while a :class:`Meter` counts them."""
    with Meter(what, total) as meter:
        for item in items:
            yield item
            meter.step()


def print_line(text: str) -> None:
    """Print one line for the user."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
