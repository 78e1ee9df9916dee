"""Panics of Rust libraries, which are not Exceptions: tokenizers panics if a pattern backtracks too long."""

from collections.abc import Generator
from contextlib import contextmanager

from depthcut.runtime.errors import UserError


@contextmanager
def explain_panics(subject: str) -> Generator[None]:
    """Inside the ``with``, turn a panic into an error about ``subject``, such as a file.

    Raises:
        UserError: for a panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{subject}: the library that reads it failed ({error})") from None
