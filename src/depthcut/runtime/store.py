"""Durable files: digests, atomic writes, locks.

Every file is written under a temporary name in its own folder, flushed to disk and renamed. A rename across file
systems would be a copy, which a kill can cut short.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from depthcut.runtime.errors import UserError

MANIFEST = "manifest.json"
OWNER = ""  # key of the manifest for the entry's key and file sizes; no file has this name
log = logging.getLogger("depthcut")


def content_digest(value: Any) -> str:
    """Return the digest of a JSON-serialisable value: 16 hex digits of SHA-256 over its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Replace the contents of ``path`` by ``text``, durably and atomically: readers see the old file or the new one."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity raise ValueError: a missing number has no key."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yield a temporary path next to ``path``; on success flush it to disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Flush ``path`` (a file or a folder) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> FileLock:
    """Return the lock at ``path``, not acquired.

    Raises:
        UserError: if ``path`` is a folder or a link.
    """
    if path.is_symlink() or path.is_dir():
        raise UserError(
            f"{path} must be a lock file, but it is a {'link' if path.is_symlink() else 'folder'}: delete it"
        )
    return FileLock(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


_hash_cache: dict[tuple[str, int, int, int, int], str] = {}


def stat_mark(about: os.stat_result) -> tuple[int, int, int, int]:
    """Return the properties that change with a file's content: size, mtime, inode, and ctime, which cannot be set."""
    return about.st_size, about.st_mtime_ns, about.st_ino, about.st_ctime_ns


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, cached in this process by path and :func:`stat_mark`.

    Raises:
        OSError: if it is not a regular file, or is unreadable.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    key = (str(path.resolve()), *stat_mark(about))
    if key not in _hash_cache:
        with path.open("rb") as file:
            _hash_cache[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hash_cache[key]
