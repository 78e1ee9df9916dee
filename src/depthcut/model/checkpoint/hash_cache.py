"""Cached SHA-256 digests of a model's files.

They are cached between processes by path, size, times and inode: a model of 100 GB is hashed once.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from depthcut.runtime import documents, store

log = logging.getLogger("depthcut")


class HashCache:
    """SHA-256 of files, cached in the file ``path`` by their path and :func:`store.stat_mark`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, path: Path) -> str:
        """Return the SHA-256 of the file's bytes, as 64 hex digits."""
        stat = path.stat()
        key, mark = str(path.resolve()), [*store.stat_mark(stat)]
        known = self._load().get(key)
        if isinstance(known, list) and known[:-1] == mark and isinstance(known[-1], str):
            return known[-1]
        if stat.st_size > 1 << 30:
            log.info("reading %s once, for its checksum", path)
        content = store.file_sha256(path)
        self._update({key: [*mark, content]})
        return content

    def remember(self, known: dict[Path, str]) -> None:
        """Store the SHA-256 of files in their present state."""
        self._update({str(path.resolve()): [*store.stat_mark(path.stat()), known[path]] for path in known})

    def _update(self, known: dict[str, list[int | str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with store.lock(self.path.with_name(f".{self.path.name}.lock")):
            store.write_json(self.path, self._load() | known)

    def _load(self) -> dict[str, Any]:
        return documents.read_json_if_present(self.path) or {}


class Stamp(NamedTuple):
    """State of a file on disk. Equal stamps mean equal bytes, because only a write sets ``ctime_ns``."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Return the current state of the file at ``path``."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
