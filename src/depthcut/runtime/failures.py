"""Errors at the end of a command: a user's mistake in one line with status 2, a bug with its traceback."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from depthcut.runtime import disk
from depthcut.runtime.errors import UserError

log = logging.getLogger("depthcut")
STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Exceptions that end the process. Any other BaseException is an error: Rust's panics are not Exceptions."""
MAX_LINE = 2000
"""Maximum number of characters of an error message."""


@contextmanager
def suppress_errors() -> Generator[None]:
    """Pass over an error that each point meets again, and reports, when it runs; the log keeps it."""
    try:
        yield
    except STOPS:
        raise
    except BaseException:
        log.debug("ignored here; the point's own run reports it", exc_info=True)


def run_guarded(main: Callable[[], Any]) -> int:
    """Run ``main`` and return its exit status: 2 for a user's mistake, printed in one line; 1 for a traceback."""
    try:
        main()
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # a second Ctrl-C: no traceback from the cleanup
        print(f"stopped: {str(stop) or 'run the same command again to resume'}", file=sys.stderr)
        return 130
    except STOPS:
        raise
    except BaseException as error:
        return report_error(error)
    return 0


def report_error(error: BaseException) -> int:
    """Print one error and return its exit status."""
    line = user_error_line(error)
    if line is not None:
        return print_error(line, getattr(error, "status", 2))
    traceback.print_exception(error)
    return 1


def error_line(error: BaseException) -> str:
    """Return any error in one line."""
    return user_error_line(error) or f"{type(error).__name__}: {error}"


def user_error_line(error: BaseException) -> str | None:
    """Return a user's mistake or a disk error in one line; None for an error that needs its traceback."""
    return str(error) if isinstance(error, UserError) else disk.explain_disk_error(error)


def print_error(line: str, status: int = 2) -> int:
    """Print an error as one line on stderr, truncated if long, and return ``status``."""
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(line.split()))
    print(f"error: {line if len(line) <= MAX_LINE else line[:MAX_LINE] + ' ...'}", file=sys.stderr)
    return status
