"""Folders cached by content and verified before use: a manifest holds each file's size and hash."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthcut.runtime import documents
from depthcut.runtime.store import MANIFEST, OWNER, file_sha256, fsync_path, lock, remove, write_json

log = logging.getLogger("depthcut")


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
