"""What a person sees while it works: a bar in a terminal, a few lines in a log file."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from depthcut import ranks

T = TypeVar("T")
log = logging.getLogger("depthcut")
console = Console(stderr=True, quiet=ranks.rank() > 0)


class Meter:
    """A counter with a line of figures: redrawn in a terminal; elsewhere logged now and then.

    Args:
        what: name of the work.
        total: steps in all.
        done: steps that an earlier process did.
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
        self.bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console, transient=True)
        self.bar.disable = not console.is_terminal
        self.task = self.bar.add_task(what, total=total, completed=done, figures="")

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, figures: str = "") -> None:
        """Count one step."""
        self.done += 1
        self.bar.update(self.task, completed=self.done, figures=figures)
        if self.bar.disable and (time.monotonic() - self.logged > 30 or self.done == self.total):
            self.logged = time.monotonic()
            log.info("%s: %d of %d %s", self.what, self.done, self.total, figures)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Give out ``items`` while a :class:`Meter` counts them."""
    with Meter(what, total) as meter:
        for item in items:
            yield item
            meter.step()
