"""Limits on the length of a text, and the report of skipped rows."""

import logging

from depthcut.runtime.errors import UserError

LONGEST = 16 << 20
"""Maximum number of characters per document: tokenising takes up to 265 bytes per character, if each is a token."""
log = logging.getLogger("depthcut")


def too_long_error(where: object, remedy: str) -> UserError:
    """Return the error for a document that does not fit in memory."""
    return UserError(f"{where} contains a document of more than {LONGEST >> 20} million characters; {remedy}")


def require_bounded(text: str, where: str) -> str:
    """Return the text, unless it is longer than ``LONGEST``."""
    if len(text) > LONGEST:
        raise too_long_error(where, "split it")
    return text


def log_skipped_nulls(where: object, field: str, nulls: int) -> None:
    """Log how many rows were skipped because they hold a null."""
    if nulls:
        log.info("%s: skipped %d %s without text (%s is null)", where, nulls, "row" if nulls == 1 else "rows", field)
