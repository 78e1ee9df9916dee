"""Durable files: written whole or not at all, kept by content, verified before they are used.

Every write goes to a temporary name in the destination's own folder, is flushed to the disk and then renamed, because a
rename across file systems is a copy that a kill can cut short.
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
OWNER = ""  # the manifest's key, no file's name, for whose entry it is and how large its files are
log = logging.getLogger("depthcut")


def content_digest(value: Any) -> str:
    """Name a JSON-able value by its content: 16 hex digits of SHA-256 over its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``, durably: a reader sees the old file or the new one, never half of one."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, durably. NaN and infinity are refused: a missing number has no key."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Give a temporary file beside ``path``; on success flush it to the disk and rename it to ``path``."""
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
    """Ask the kernel to put ``path`` (a file or a folder) on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> FileLock:
    """Return the lock at ``path``, not held.

    Raises:
        UserError: if a folder or a link is in its place.
    """
    if path.is_symlink() or path.is_dir():
        raise UserError(f"{path} must be a lock file, and is a {'link' if path.is_symlink() else 'folder'}: delete it")
    return FileLock(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def cached_folder(folder: Path, make: Callable[[Path], None], key: str = "") -> Path:
    """Return ``folder`` whole and verified; where it is not, let ``make`` fill an empty folder that takes its place.

    One process makes it while the others wait; a maker that dies leaves nothing that is taken for whole.
    The manifest, written last, holds each file's SHA-256 and the key.

    Args:
        folder: where the entry lives.
        make: fills the empty folder that it is given.
        key: the digest of what went into it; the folder's name if that is the digest.
    """
    if is_verified(folder, key):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock")):
        why = entry_fault(folder, key)
        if why is None:
            return folder
        if os.path.lexists(folder):
            log.warning("%s %s: it is made again", folder, why)
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
    """Return a JSON value of the cache, made once; as :func:`cached_folder`."""
    name = "value.json"
    cached_folder(folder, lambda new: write_json(new / name, make()))
    return documents.read_json(folder / name)


@dataclass(frozen=True)
class Manifest:
    """What vouches for the files of an entry.

    Attributes:
        hashes: the SHA-256 of each file, by its path in the folder.
        sizes: their bytes; empty in an entry of an earlier version.
        key: the digest of what the entry was made from; None in an entry of an earlier version.
    """

    hashes: dict[str, str]
    sizes: dict[str, int]
    key: str | None

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read it.

        Raises:
            FileNotFoundError: if there is none.
            DamagedError: if it is no manifest.
        """
        found = documents.read_json(folder / MANIFEST)
        owner: Any = found.pop(OWNER, {"key": None, "bytes": {}})
        whole = bool(found) and all(isinstance(each, str) for each in found.values())
        if not whole or not isinstance(owner, dict) or not isinstance(owner.get("bytes"), dict):
            raise documents.DamagedError(folder / MANIFEST, "no manifest")
        return cls(found, owner["bytes"], owner.get("key"))


def write_manifest(folder: Path, key: str) -> None:
    """Flush every file of ``folder`` and write the manifest that vouches for them and says what they were made from."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        fsync_path(path)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    owner = {"key": key, "bytes": {name: path.stat().st_size for name, path in names.items()}}
    write_json(folder / MANIFEST, {OWNER: owner, **{name: file_sha256(path) for name, path in names.items()}})


def is_verified(folder: Path, key: str = "") -> bool:
    """Return whether ``folder`` is an entry for ``key``, and each of its files has the content that was written."""
    return entry_fault(folder, key) is None


def entry_fault(folder: Path, key: str = "") -> str | None:
    """Return why ``folder`` is no entry for ``key`` (its name if empty), or None if it is one.

    An entry of an earlier version has no key, and its content alone counts.
    """
    return _first_fault(folder, key, lambda name, manifest: file_sha256(folder / name) == manifest.hashes[name])


def entry_key(folder: Path) -> str | None:
    """Return the key of the entry in ``folder``, or None if it says none."""
    try:
        return Manifest.read(folder).key
    except (FileNotFoundError, documents.DamagedError):
        return None


def size_fault(folder: Path, key: str = "") -> str | None:
    """Return why ``folder`` is no entry for ``key``, by the sizes of its files alone, which are not read."""

    def same(name: str, manifest: Manifest) -> bool:
        size = (folder / name).stat().st_size
        return size == manifest.sizes.get(name, size)

    return _first_fault(folder, key, same)


def _first_fault(folder: Path, key: str, same: Callable[[str, Manifest], bool]) -> str | None:
    """Return why an entry cannot be used, where ``same`` compares one file with the manifest."""
    try:
        manifest = Manifest.read(folder)
        if manifest.key not in (None, key or folder.name):
            return f"belongs to {manifest.key}"
        wrong = next((name for name in manifest.hashes if not same(name, manifest)), None)
    except documents.DamagedError as error:
        return f"has a damaged {error.path.name} ({error.why})"
    except OSError as error:
        return f"is not whole ({error.strerror or 'no ' + MANIFEST})"
    return f"is damaged ({wrong})" if wrong is not None else None


_hash_cache: dict[tuple[str, int, int, int, int], str] = {}


def stat_mark(about: os.stat_result) -> tuple[int, int, int, int]:
    """Return what changes with a file's content: size, time of change, inode, and the time that nobody can set."""
    return about.st_size, about.st_mtime_ns, about.st_ino, about.st_ctime_ns


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, remembered in this process by path and :func:`stat_mark`.

    Raises:
        OSError: if it is no regular file, or cannot be read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    key = (str(path.resolve()), *stat_mark(about))
    if key not in _hash_cache:
        with path.open("rb") as file:
            _hash_cache[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hash_cache[key]
