"""A model on the Hugging Face hub, given by its repository name."""

from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints
from typing_extensions import override

from depthcut.model import Model
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.checkpoint.repository import HubRepository
from depthcut.runtime.strict import strict


@strict
class Hub(Model):
    """A hub repository.

    Attributes:
        repo: OWNER/NAME.
        revision: a commit, a branch or a tag; None: the newest.
    """

    repo: Annotated[str, StringConstraints(min_length=1)]
    revision: str | None

    @override
    def open(self, cache: Path) -> Checkpoint:
        repo = HubRepository(self.repo, self.revision, cache, HashCache(cache / "hashes.json"))
        return Checkpoint(repo, separator=self.separator)
