"""Data: sources of the text of each part (calibration, train, validation)."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict, field_validator

from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import Method, strict

LONGEST = 1 << 20
"""Maximum number of tokens per sequence; unpacked sequences are padded to their length on disk."""


@strict
class Source(Method, ABC):
    """The text of one part, and the shape of its sequences.

    A document belongs to a part by its content alone: parts with disjoint spans never share one, whatever their files.

    Attributes:
        span: share of the corpus by each document's hash, [start, stop) within [0, 1].
        sequences: number of sequences; None: as many as requested.
        length: tokens per sequence; all except the first are predicted.
        pack: True: documents are concatenated and cut; False: one document per sequence, truncated at ``length`` and
            padded on the right.
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

    @property
    def hub_dataset(self) -> str | None:
        """Name of the data set on the hub, or None."""
        return None

    @abstractmethod
    def documents(self, cache: Path) -> Iterator[str]:
        """Yield the texts inside the span, always in the same order; downloads are cached in ``cache``.

        Raises:
            UserError: if the text is unreadable for any reason.
        """

    @abstractmethod
    def content(self, cache: Path) -> dict[str, str]:
        """Return an identifier of the content of each file, or of the data set: a SHA-256, a commit."""

    @abstractmethod
    def named(self, content: dict[str, str]) -> str:
        """Return the digest of the documents that this :meth:`content` gives."""

    def identity(self, cache: Path) -> str:
        """Return the digest of the documents, without reading pinned content."""
        return self.named(self.content(cache))

    def require(self, content: dict[str, str], cache: Path) -> None:
        """Check that the content is unchanged after documents were read.

        Raises:
            UserError: naming the files that changed.
        """
        now = self.content(cache)
        changed = [name for name in content | now if content.get(name) != now.get(name)]
        if changed:
            raise UserError(f"{', '.join(changed)} changed during the run; run the same command again")

    def covers(self, text: str) -> bool:
        """Return whether a document is inside the span."""
        return within_span(text, self.span)


def within_span(text: str, span: tuple[float, float]) -> bool:
    """Return whether a document's hash, as a fraction of the hash range, is in ``span`` (half-open)."""
    return span[0] <= text_fingerprint(text) / 2**64 < span[1]


def text_fingerprint(text: str) -> int:
    """Return 64 bits of SHA-256 over a document's words, which ignores differences in white space."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()[:8], "big")


Contents = dict[str, dict[str, str]]
"""Content of sources, by source, when it was first read."""


def first_content(contents: Contents, source: Source, cache: Path) -> dict[str, str]:
    """Return the content that a source had when it was first read."""
    if repr(source) not in contents:
        contents[repr(source)] = source.content(cache)
    return contents[repr(source)]
