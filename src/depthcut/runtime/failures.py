"""The end of a command: a user's mistake in one line with status 2, a fault with its traceback."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from depthcut.config.errors import of_hydra
from depthcut.runtime import disk
from depthcut.runtime.errors import UserError

STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends the process. Any other BaseException is a fault: Rust's panics are none of Exception's kind."""
LONGEST = 2000
"""Characters of a complaint."""
faults: list[BaseException] = []


@contextmanager
def noted() -> Generator[None]:
    """Put an exception aside for :func:`guard`: the other points of a sweep go on, and Hydra adds no words."""
    try:
        yield
    except STOPS:
        raise
    except BaseException as error:
        faults.append(error)


@contextmanager
def suppressed() -> Generator[None]:
    """Leave a fault to each point that it is of: it meets the same one, and fails with it."""
    try:
        yield
    except STOPS:
        raise
    except BaseException:
        pass


def guard(main: Callable[[], Any]) -> int:
    """Run ``main``; a user's mistake becomes one line and status 2, anything else keeps its traceback and status 1."""
    try:
        with noted():
            main()
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C again: no traceback of what is being closed
        print(f"stopped: {str(stop) or 'give the same command again to resume'}", file=sys.stderr)
        return 130
    return max((of(error) for error in faults), default=0)


def of(error: BaseException) -> int:
    """Tell of one fault; its exit status."""
    line = expected(error)
    if line is not None:
        return tell(line, getattr(error, "status", 2))
    traceback.print_exception(error)
    return 1


def line(error: BaseException) -> str:
    """Any fault in one line."""
    return expected(error) or f"{type(error).__name__}: {error}"


def expected(error: BaseException) -> str | None:
    """A user's mistake, or a disk that refuses, in one line; None for a fault that needs its traceback."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return of_hydra(error)
    return str(error) if isinstance(error, UserError) else disk.explain(error)


def tell(line: str, status: int = 2) -> int:
    """Print a complaint as one line on stderr; a value of a whole page in it is cut."""
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(line.split()))
    print(f"error: {line if len(line) <= LONGEST else line[:LONGEST] + ' ...'}", file=sys.stderr)
    return status
