"""Panics of libraries in Rust, which are no ``Exception``: tokenizers panics on a pattern that backtracks too long."""

from collections.abc import Generator
from contextlib import contextmanager

from depthcut.runtime.errors import UserError


@contextmanager
def explain_panics(subject: str) -> Generator[None]:
    """Inside the ``with``, make a panic an error of ``subject``, such as a file.

    Raises:
        UserError: for a panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{subject}: the library that reads it failed ({error})") from None
