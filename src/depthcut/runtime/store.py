"""Durable files: written atomically, cached by content, verified before use.

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
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from depthcut.runtime import documents
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


def cached_folder(folder: Path, make: Callable[[Path], None], key: str = "") -> Path:
    """Return ``folder`` complete and verified; if it is not, let ``make`` fill an empty folder that replaces it.

    One process makes the entry while the others wait; an interrupted one leaves no entry behind. The manifest, written
    last, holds the SHA-256 of each file and the key.

    Args:
        folder: path of the entry.
        make: fills the empty folder that it is given.
        key: digest of the entry's inputs; by default the folder's name.
    """
    if is_verified(folder, key):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock")):
        why = entry_fault(folder, key)
        if why is None:
            return folder
        if os.path.lexists(folder):
            log.warning("%s %s: rebuilding it", folder, why)
        building = folder.with_name(f".{folder.name}.tmp")
        remove(building)
        building.mkdir()
        try:
            make(building)
            write_manifest(building, key or folder.name)
            remove(folder)
            building.rename(folder)
        finally:
            remove(building)
        fsync_path(folder.parent)
    return folder


def cached_value(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a cached JSON value, made once as in :func:`cached_folder`."""
    name = "value.json"
    cached_folder(folder, lambda new: write_json(new / name, make()))
    return documents.read_json(folder / name)


@dataclass(frozen=True)
class Manifest:
    """The manifest of a cache entry.

    Attributes:
        hashes: SHA-256 of each file, by its path in the folder.
        sizes: bytes of each file; empty in an entry of an earlier version.
        key: digest of the entry's inputs; None in an entry of an earlier version.
    """

    hashes: dict[str, str]
    sizes: dict[str, int]
    key: str | None

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of ``folder``.

        Raises:
            FileNotFoundError: if it does not exist.
            DamagedError: if it is invalid.
        """
        found = documents.read_json(folder / MANIFEST)
        owner: Any = found.pop(OWNER, {"key": None, "bytes": {}})
        whole = bool(found) and all(isinstance(each, str) for each in found.values())
        if not whole or not isinstance(owner, dict) or not isinstance(owner.get("bytes"), dict):
            raise documents.DamagedError(folder / MANIFEST, "no manifest")
        return cls(found, owner["bytes"], owner.get("key"))


def write_manifest(folder: Path, key: str) -> None:
    """Flush every file of ``folder``, then write the manifest with their hashes and sizes and ``key``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        fsync_path(path)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    owner = {"key": key, "bytes": {name: path.stat().st_size for name, path in names.items()}}
    write_json(folder / MANIFEST, {OWNER: owner, **{name: file_sha256(path) for name, path in names.items()}})


def is_verified(folder: Path, key: str = "") -> bool:
    """Return whether ``folder`` is an entry for ``key`` and its files are unchanged."""
    return entry_fault(folder, key) is None


def entry_fault(folder: Path, key: str = "") -> str | None:
    """Return why ``folder`` is not an entry for ``key`` (by default its name), or None if it is one.

    Entries of earlier versions have no key; only their contents are checked.
    """
    return _first_fault(folder, key, lambda name, manifest: file_sha256(folder / name) == manifest.hashes[name])


def entry_key(folder: Path) -> str | None:
    """Return the key of the entry in ``folder``, or None if it has none."""
    try:
        return Manifest.read(folder).key
    except (FileNotFoundError, documents.DamagedError):
        return None


def size_fault(folder: Path, key: str = "") -> str | None:
    """Return why ``folder`` is not an entry for ``key``, by file sizes only, without reading the files."""

    def same(name: str, manifest: Manifest) -> bool:
        size = (folder / name).stat().st_size
        return size == manifest.sizes.get(name, size)

    return _first_fault(folder, key, same)


def _first_fault(folder: Path, key: str, same: Callable[[str, Manifest], bool]) -> str | None:
    """Return the first fault of an entry, where ``same`` compares one file with the manifest."""
    try:
        manifest = Manifest.read(folder)
        if manifest.key not in (None, key or folder.name):
            return f"belongs to {manifest.key}"
        wrong = next((name for name in manifest.hashes if not same(name, manifest)), None)
    except documents.DamagedError as error:
        return f"has a damaged {error.path.name} ({error.why})"
    except OSError as error:
        return f"is incomplete ({error.strerror or 'no ' + MANIFEST})"
    return f"is damaged ({wrong})" if wrong is not None else None


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
