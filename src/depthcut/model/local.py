"""A model given by its path: a folder, a GGUF file, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from typing_extensions import override

from depthcut.model import Model
from depthcut.model.checkpoint import gguf
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFiles, ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.checkpoint.repository import HubRepository
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import strict


@strict
class Local(Model):
    """A model given by its path.

    Attributes:
        path: a folder written by transformers, a .gguf file, or, if no such path exists, OWNER/NAME on the hub.
    """

    path: PathText

    @override
    def open(self, cache: Path) -> Checkpoint:
        return Checkpoint(self._files(cache, HashCache(cache / "hashes.json")), separator=self.separator)

    def _files(self, cache: Path, hashes: HashCache) -> ModelFiles:
        path = Path(self.path)
        if snapshots := sorted(path.glob("snapshots/*/config.json")):
            folders = " or ".join(str(config.parent) for config in snapshots[:3])
            raise UserError(f"model.path={self.path} is a repository in the hub's cache, not a model; use {folders}")
        if path.is_dir():
            return ModelFolder(path, hashes)
        if path.is_file() and path.suffix == ".gguf":
            return gguf.open_gguf(path, cache, hashes)
        if not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.path):
            return HubRepository(self.path, None, cache, hashes)
        problem = "is another kind of file" if path.exists() else "does not exist"
        raise UserError(
            f"model.path={self.path} {problem}; expected a model folder, a .gguf file or OWNER/NAME on the hub"
        )
