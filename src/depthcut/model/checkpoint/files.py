"""The files of a model, local or remote, each identified by its SHA-256."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from depthcut.model.checkpoint.hash_cache import HashCache, Stamp
from depthcut.runtime import documents, store, verified
from depthcut.runtime.errors import UserError

SMALL = 1 << 20  # bytes; files up to this size are hashed as soon as they are pinned
ADAPTER = "adapter_config.json"
log = logging.getLogger("depthcut")


def cached_model_folder(folder: Path, make: Callable[[Path], None], hashes: HashCache) -> Path:
    """Return a folder as :func:`verified.cached_folder` does, without rereading files unchanged since verification."""
    with suppress(OSError, documents.DamagedError):
        manifest = verified.Manifest.read(folder)
        known = {name: hashes(folder / name) for name in manifest.hashes}
        if manifest.key in (None, folder.name) and known == manifest.hashes:
            return folder
    return verified.cached_folder(folder, make)


class ModelFiles(ABC):
    """The files of one model.

    Attributes:
        title: name of the model in messages.
        hashes: cache of SHA-256 hashes.
        names: names of all files, including those that are not downloaded yet.
    """

    title: str
    hashes: HashCache
    names: frozenset[str]

    @property
    @abstractmethod
    def folder(self) -> Path:
        """A local folder that holds every file except the weights."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """Return the local path of a file, downloading it if necessary.

        Raises:
            UserError: if the file does not exist or is unavailable.
        """

    @abstractmethod
    def local_path(self, name: str) -> Path | None:
        """Return the local path of a file, or None if it is not downloaded yet."""

    @abstractmethod
    def expected_sha256(self, name: str) -> str | None:
        """Return the SHA-256 that the source states for a file, or None."""

    @abstractmethod
    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file."""

    @cached_property
    def pins(self) -> dict[str, Stamp]:
        """Stamps of the files that a run depends on, taken when it first saw them."""
        return {}

    def pin(self, *names: str) -> None:
        """Record the state of these files; :meth:`check_unchanged` refuses those that change later."""
        for name in names:
            if name not in self.pins and (path := self.local_path(name)):
                self.pins[name] = Stamp.of(path)
                if self.pins[name].size <= SMALL:
                    self.contents[name] = store.file_sha256(path)

    def check_unchanged(self, *names: str) -> None:
        """Compare these files with their pinned state; without names, all pinned files.

        A file with another stamp and the same bytes (touched, copied back) passes if its hash is known.

        Raises:
            UserError: if a file has changed: earlier and later reads would belong to two models.
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
            mend = "restore the old file, or run again with the new one"
            raise UserError(f"{path or name} has changed since this run first read it; {mend}")

    @cached_property
    def contents(self) -> dict[str, str]:
        """SHA-256 of the pinned files that have been hashed."""
        return {}

    def require(self, name: str) -> None:
        """Check that a file exists.

        Raises:
            UserError: if it does not.
        """
        if name in self.names:
            return
        if name == "config.json" and ADAPTER in self.names:
            base = self.read_json(ADAPTER).get("base_model_name_or_path") or "an unnamed base model"
            mend = "use the base model, or merge the adapter into it first"
            raise UserError(f"{self.title} is only an adapter ({ADAPTER}) of {base}, not a model; {mend}")
        raise UserError(f"{self.title} has no {name}: it is not a complete transformers model; download it again")

    def verified_path(self, name: str) -> Path:
        """Return the local path of a file, checked against the hash that its source states.

        Raises:
            UserError: if the hash differs, or the file is unavailable.
        """
        path, vouched = self.path(name), self.expected_sha256(name)
        if vouched and self.hashes(path) != vouched:
            raise self.damaged_error(name, "its checksum differs from its source's")
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file.

        Raises:
            UserError: if the file is missing or holds no JSON object.
        """
        path = self.path(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except RecursionError:
            raise self.damaged_error(name, "nested too deeply") from None
        except ValueError as error:  # not JSON, not UTF-8, or a number with thousands of digits
            raise self.damaged_error(name, str(error).partition(";")[0][:200]) from None
        if not isinstance(content, dict):
            raise self.damaged_error(name, "not a JSON object")
        return content

    def damaged_error(self, name: str, why: str) -> UserError:
        """Return the error for a damaged file, with the remedy."""
        place = self.local_path(name) or name
        return UserError(f"{self.title}: {name} is truncated or damaged ({why}); delete {place} and download it again")


class ModelFolder(ModelFiles):
    """A local model folder. A ``manifest.json`` written by this package states the expected hashes."""

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
