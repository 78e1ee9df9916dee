"""Where a model's bytes come from: a folder's files, one at a time, each known by its SHA-256.

A hash is remembered between processes by path, size, times and inode: a model of 100 GB is read for it once.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from typing_extensions import override

from depthcut import store
from depthcut.runtime import documents
from depthcut.runtime.errors import UserError

log = logging.getLogger("depthcut")


class Hashes:
    """SHA-256 of files, remembered in ``memory`` by path and :func:`store.mark`."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory

    def __call__(self, path: Path) -> str:
        """Return the SHA-256 of the file's bytes, as 64 hex digits."""
        stat = path.stat()
        key, mark = str(path.resolve()), [*store.mark(stat)]
        known = self._read().get(key)
        if isinstance(known, list) and known[:-1] == mark and isinstance(known[-1], str):
            return known[-1]
        if stat.st_size > 1 << 30:
            log.info("reading %s once, for its checksum", path)
        content = store.sha256(path)
        self._note({key: [*mark, content]})
        return content

    def note(self, known: dict[Path, str]) -> None:
        """Remember the SHA-256 of files as they are now."""
        self._note({str(path.resolve()): [*store.mark(path.stat()), known[path]] for path in known})

    def _note(self, known: dict[str, list[int | str]]) -> None:
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        with store.lock(self.memory.with_name(f".{self.memory.name}.lock")):
            store.write_json(self.memory, self._read() | known)

    def _read(self) -> dict[str, Any]:
        return documents.found(self.memory) or {}


def kept(folder: Path, make: Callable[[Path], None], hashes: Hashes) -> Path:
    """:func:`store.kept`, save that files which have not changed since they were last verified are not read again."""
    with suppress(OSError, documents.DamagedError):
        manifest = store.Manifest.read(folder)
        known = {name: hashes(folder / name) for name in manifest.hashes}
        if manifest.key in (None, folder.name) and known == manifest.hashes:
            return folder
    return store.kept(folder, make)


class Files(ABC):
    """The files of one model.

    Attributes:
        title: what messages call the model.
        hashes: the memory of checksums.
        names: the files that there are, by name, whether or not they are on this machine yet.
    """

    title: str
    hashes: Hashes
    names: frozenset[str]

    @property
    @abstractmethod
    def folder(self) -> Path:
        """A folder of this machine that holds every file but the weights."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """The file on this machine; it is fetched if it must be.

        Raises:
            UserError: if there is no such file, or it cannot be had.
        """

    @abstractmethod
    def here(self, name: str) -> Path | None:
        """The file, if it is on this machine already."""

    @abstractmethod
    def vouched(self, name: str) -> str | None:
        """The SHA-256 that the source says this file has, where it says so."""

    @abstractmethod
    def sha256(self, name: str) -> str:
        """The SHA-256 of the file."""

    def require(self, name: str) -> None:
        """Check that there is such a file.

        Raises:
            UserError: if not.
        """
        if name not in self.names:
            raise UserError(f"{self.title} has no {name}: it is no whole model that transformers saved; fetch it again")

    def whole(self, name: str) -> Path:
        """The file on this machine, checked against the hash that its source vouches for.

        Raises:
            UserError: if it is not what the source says, or cannot be had.
        """
        path, vouched = self.path(name), self.vouched(name)
        if vouched and self.hashes(path) != vouched:
            raise self.damaged(name, "its bytes are not those that its source vouches for")
        return path

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's content.

        Raises:
            UserError: if it is not there, or is no JSON object.
        """
        try:
            content = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self.damaged(name, str(error)) from None
        if not isinstance(content, dict):
            raise self.damaged(name, "no JSON object")
        return content

    def damaged(self, name: str, why: str) -> UserError:
        """The error for a file that is not what it should be; it says how to mend that."""
        place = self.here(name) or name
        return UserError(f"{self.title}: {name} is cut short or damaged ({why}); delete {place} and fetch it again")


class Folder(Files):
    """A model folder on this machine. A ``manifest.json`` in it, as this package writes it, vouches for its files."""

    def __init__(self, folder: Path, hashes: Hashes) -> None:
        self._folder = folder
        self.title = str(folder)
        self.hashes = hashes
        self.names = frozenset(path.name for path in folder.iterdir() if path.is_file())

    @property
    @override
    def folder(self) -> Path:
        return self._folder

    @override
    def path(self, name: str) -> Path:
        self.require(name)
        return self._folder / name

    @override
    def here(self, name: str) -> Path | None:
        return self._folder / name if name in self.names else None

    @override
    def vouched(self, name: str) -> str | None:
        return self.json(store.MANIFEST).get(name) if store.MANIFEST in self.names else None

    @override
    def sha256(self, name: str) -> str:
        return self.hashes(self.path(name))
