"""Where a model's bytes come from: a folder's files, one at a time, each known by its SHA-256.

A hash is remembered between processes by path, size, times and inode: a model of 100 GB is read for it once.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

from depthcut.runtime import documents, store
from depthcut.runtime.errors import UserError

SMALL = 1 << 20  # bytes of a file that is hashed as soon as it is pinned
ADAPTER = "adapter_config.json"
log = logging.getLogger("depthcut")


class HashCache:
    """SHA-256 of files, remembered in ``path`` by path and :func:`store.stat_mark`."""

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
        """Remember the SHA-256 of files as they are now."""
        self._update({str(path.resolve()): [*store.stat_mark(path.stat()), known[path]] for path in known})

    def _update(self, known: dict[str, list[int | str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with store.lock(self.path.with_name(f".{self.path.name}.lock")):
            store.write_json(self.path, self._load() | known)

    def _load(self) -> dict[str, Any]:
        return documents.read_json_if_present(self.path) or {}


def cached_model_folder(folder: Path, make: Callable[[Path], None], hashes: HashCache) -> Path:
    """Do as :func:`store.cached_folder`, but do not reread files unchanged since they were last verified."""
    with suppress(OSError, documents.DamagedError):
        manifest = store.Manifest.read(folder)
        known = {name: hashes(folder / name) for name in manifest.hashes}
        if manifest.key in (None, folder.name) and known == manifest.hashes:
            return folder
    return store.cached_folder(folder, make)


class Stamp(NamedTuple):
    """State of a file on disk. Equal stamps mean equal bytes; nothing but a write sets ``ctime_ns``."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Return the state of the file at ``path`` now."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


class ModelFiles(ABC):
    """The files of one model.

    Attributes:
        title: what messages call the model.
        hashes: the memory of checksums.
        names: the files that there are, by name, whether or not they are on this machine yet.
    """

    title: str
    hashes: HashCache
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
    def local_path(self, name: str) -> Path | None:
        """The file, if it is on this machine already."""

    @abstractmethod
    def expected_sha256(self, name: str) -> str | None:
        """The SHA-256 that the source says this file has, where it says so."""

    @abstractmethod
    def sha256(self, name: str) -> str:
        """The SHA-256 of the file."""

    @cached_property
    def pins(self) -> dict[str, Stamp]:
        """The files that a run depends on, in the state in which it first saw them."""
        return {}

    def pin(self, *names: str) -> None:
        """Remember the state of these files; :meth:`check_unchanged` refuses those that change later."""
        for name in names:
            if name not in self.pins and (path := self.local_path(name)):
                self.pins[name] = Stamp.of(path)
                if self.pins[name].size <= SMALL:
                    self.contents[name] = store.file_sha256(path)

    def check_unchanged(self, *names: str) -> None:
        """Compare these files with their pinned state; without names, all that are pinned.

        A file with another stamp and the same bytes (touched, copied back) passes if its hash is known.

        Raises:
            UserError: if one has changed: what was read before and what is read now are of two models.
        """
        for name in names if names else tuple(self.pins):
            path, before = self.local_path(name), self.pins.get(name)
            try:
                now = Stamp.of(path) if path else None
                if before is None or now == before:
                    continue
                if path and now and name in self.contents and self.hashes(path) == self.contents[name]:
                    self.pins[name] = now
                    continue
            except OSError:
                pass
            mend = "put the old file back, or start again with the new one"
            raise UserError(f"{path or name} has changed since this run first read it; {mend}")

    @cached_property
    def contents(self) -> dict[str, str]:
        """The SHA-256 of the pinned files that have been hashed."""
        return {}

    def require(self, name: str) -> None:
        """Check that there is such a file.

        Raises:
            UserError: if not.
        """
        if name in self.names:
            return
        if name == "config.json" and ADAPTER in self.names:
            base = self.read_json(ADAPTER).get("base_model_name_or_path") or "a model that it does not name"
            mend = "give the base, or merge the adapter into it first"
            raise UserError(f"{self.title} holds no model, only an adapter ({ADAPTER}) of {base}; {mend}")
        raise UserError(f"{self.title} has no {name}: it is no whole model that transformers saved; fetch it again")

    def verified_path(self, name: str) -> Path:
        """The file on this machine, checked against the hash that its source vouches for.

        Raises:
            UserError: if it is not what the source says, or cannot be had.
        """
        path, vouched = self.path(name), self.expected_sha256(name)
        if vouched and self.hashes(path) != vouched:
            raise self.damaged_error(name, "its bytes are not those that its source vouches for")
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file's content.

        Raises:
            UserError: if it is not there, or is no JSON object.
        """
        path = self.path(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except RecursionError:
            raise self.damaged_error(name, "nested too deeply") from None
        except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
            raise self.damaged_error(name, str(error).partition(";")[0][:200]) from None
        if not isinstance(content, dict):
            raise self.damaged_error(name, "no JSON object")
        return content

    def damaged_error(self, name: str, why: str) -> UserError:
        """The error for a file that is not what it should be; it says how to mend that."""
        place = self.local_path(name) or name
        return UserError(f"{self.title}: {name} is cut short or damaged ({why}); delete {place} and fetch it again")


class ModelFolder(ModelFiles):
    """A model folder on this machine. A ``manifest.json`` in it, as this package writes it, vouches for its files."""

    def __init__(self, folder: Path, hashes: HashCache) -> None:
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
    def local_path(self, name: str) -> Path | None:
        return self._folder / name if name in self.names else None

    @override
    def expected_sha256(self, name: str) -> str | None:
        return self.read_json(store.MANIFEST).get(name) if store.MANIFEST in self.names else None

    @override
    def sha256(self, name: str) -> str:
        self.pin(name)
        self.contents[name] = self.hashes(self.path(name))
        return self.contents[name]
