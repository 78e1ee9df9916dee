"""Data: where the text of each part (calibration, train, validation) comes from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict, field_validator

from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

LONGEST = 1 << 20
"""Tokens of a sequence at most; unpacked sequences are padded to their length on the disk."""


@strict
class Source(ABC):
    """The text of one part, and the shape that it is brought into.

    A document belongs to a part by its content alone: parts with disjoint spans never share one, whatever their files.

    Attributes:
        span: share of the corpus by each whole document's hash, [start, stop) within [0, 1].
        sequences: how many to use; None: as many as are asked for.
        length: tokens of a sequence, of which the first is given and each other one predicted.
        pack: join documents end to end and cut; or one document a sequence, cut at ``length``, padded on the right.
    """

    span: Annotated[tuple[float, float], Strict(False)]  # YAML has no tuples
    sequences: Annotated[int | None, Field(gt=0)]
    length: Annotated[int, Field(ge=2, le=LONGEST)]
    pack: bool

    @field_validator("span")
    @classmethod
    def inside(cls, span: tuple[float, float]) -> tuple[float, float]:
        """Refuse a span that is empty or outside of [0, 1]."""
        if not 0 <= span[0] < span[1] <= 1:
            raise UserError(f"must be two numbers with 0 <= start < stop <= 1, got {list(span)}")
        return span

    @abstractmethod
    def documents(self, cache: Path) -> Iterator[str]:
        """The texts inside the span, always the same in the same order; what is downloaded is kept in ``cache``.

        Raises:
            UserError: for whatever keeps the text from being read.
        """

    @abstractmethod
    def content(self, cache: Path) -> dict[str, str]:
        """Return what pins the content of each file, or of the data set: a SHA-256, a commit."""

    @abstractmethod
    def named(self, content: dict[str, str]) -> str:
        """Name what :meth:`documents` gives of this :meth:`content`."""

    def identity(self, cache: Path) -> str:
        """Name by content what :meth:`documents` gives, without reading all of it where its content is pinned."""
        return self.named(self.content(cache))

    def require(self, content: dict[str, str], cache: Path) -> None:
        """Check that the content is still this, after documents were read.

        Raises:
            UserError: naming what changed meanwhile.
        """
        now = self.content(cache)
        changed = [name for name in content | now if content.get(name) != now.get(name)]
        if changed:
            raise UserError(f"{', '.join(changed)} changed during the run; give the same command again")

    def covers(self, text: str) -> bool:
        """Whether a whole document is inside the span."""
        return within_span(text, self.span)


def within_span(text: str, span: tuple[float, float]) -> bool:
    """Whether a whole document's hash, as a share of all hashes, is in ``span`` (half-open)."""
    return span[0] <= text_fingerprint(text) / 2**64 < span[1]


def text_fingerprint(text: str) -> int:
    """64 bits of SHA-256 over a document's words: the same for a text that differs in white space only."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()[:8], "big")


Contents = dict[str, dict[str, str]]
"""The content of sources when they were first asked for."""


def first_content(contents: Contents, source: Source, cache: Path) -> dict[str, str]:
    """Return the content that a source had when this was first called for it."""
    if repr(source) not in contents:
        contents[repr(source)] = source.content(cache)
    return contents[repr(source)]
