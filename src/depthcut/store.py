"""Durable files: written whole or not at all, kept by content, verified before they are used.

Every write goes to a temporary name in the destination's own folder, is flushed to the disk and then renamed, because a
rename across file systems is a copy that a kill can cut short.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """Name a JSON-able value by its content: 16 hex digits of SHA-256 over its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``, durably: a reader sees the old file or the new one, never half of one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, durably. NaN and infinity are refused: a missing number has no key."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a temporary file beside ``path``; on success flush it to the disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Ask the kernel to put ``path`` (a file or a folder) on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return ``folder`` whole and verified; where it is not, let ``make`` fill an empty folder that takes its place.

    One process makes it while the others wait; a maker that dies leaves nothing that is taken for whole.
    The manifest, written last, holds each file's SHA-256.

    Args:
        folder: where the entry lives; its name should be the digest of what went into it.
        make: fills the empty folder that it is given.
    """
    if verified(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if verified(folder):
            return folder
        building = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            make(building)
            seal(building)
            shutil.rmtree(folder, ignore_errors=True)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        flush(folder.parent)
    return folder


def value(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A JSON value of the cache, made once; as :func:`kept`."""
    name = "value.json"
    kept(folder, lambda new: write_json(new / name, make()))
    return json.loads((folder / name).read_text(encoding="utf-8"))


def seal(folder: Path) -> None:
    """Flush every file of ``folder`` and write the manifest that vouches for them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        flush(path)
    entries = {str(path.relative_to(folder)): sha256(path) for path in files}
    write_json(folder / MANIFEST, entries)


def verified(folder: Path) -> bool:
    """Whether ``folder`` has a manifest and every file in it still has the content that the manifest names."""
    try:
        manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(sha256(folder / name) == content for name, content in manifest.items())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return False


_seen: dict[tuple[str, int, int, int, int], str] = {}


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, remembered in this process by path, size, inode and times."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    if key not in _seen:
        with path.open("rb") as file:
            _seen[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _seen[key]
