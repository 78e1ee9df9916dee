"""The end of a command: a user's mistake in one line with status 2, a fault with its traceback."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from depthcut.runtime import disk
from depthcut.runtime.errors import UserError

STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends the process. Any other BaseException is a fault: Rust's panics are none of Exception's kind."""
MAX_LINE = 2000
"""Characters of a complaint."""
collected_errors: list[BaseException] = []


@contextmanager
def collect_errors() -> Generator[None]:
    """Put an exception aside for :func:`run_guarded`: the other points of a sweep go on, and Hydra adds no words."""
    try:
        yield
    except STOPS:
        raise
    except BaseException as error:
        collected_errors.append(error)


@contextmanager
def suppress_errors() -> Generator[None]:
    """Leave a fault to each point that it is of: it meets the same one, and fails with it."""
    try:
        yield
    except STOPS:
        raise
    except BaseException:
        pass


def run_guarded(main: Callable[[], Any]) -> int:
    """Run ``main``; a user's mistake becomes one line and status 2, anything else keeps its traceback and status 1."""
    try:
        with collect_errors():
            main()
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C again: no traceback of what is being closed
        print(f"stopped: {str(stop) or 'give the same command again to resume'}", file=sys.stderr)
        return 130
    return max((report_error(error) for error in collected_errors), default=0)


def report_error(error: BaseException) -> int:
    """Tell of one fault; its exit status."""
    line = user_error_line(error)
    if line is not None:
        return print_error(line, getattr(error, "status", 2))
    traceback.print_exception(error)
    return 1


def error_line(error: BaseException) -> str:
    """Any fault in one line."""
    return user_error_line(error) or f"{type(error).__name__}: {error}"


def user_error_line(error: BaseException) -> str | None:
    """A user's mistake, or a disk that refuses, in one line; None for a fault that needs its traceback."""
    return str(error) if isinstance(error, UserError) else disk.explain_disk_error(error)


def print_error(line: str, status: int = 2) -> int:
    """Print a complaint as one line on stderr; a value of a whole page in it is cut."""
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(line.split()))
    print(f"error: {line if len(line) <= MAX_LINE else line[:MAX_LINE] + ' ...'}", file=sys.stderr)
    return status
