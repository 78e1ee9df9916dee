"""Model files on the Hugging Face hub: listed at once, each downloaded on first use.

A commit never changes, so its listing is cached, and the second opening works without a network. A pruned model needs
no shard that holds only dropped layers.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.checkpoint.hub_errors import HubUnreachableError, translate_hub_errors
from depthcut.runtime import documents, store
from depthcut.runtime.errors import UserError

# Small files that a config or a tokenizer may consist of.
SMALL_SUFFIXES = frozenset({".json", ".model", ".txt", ".jinja"})


class HubRepository(ModelFiles):
    """A hub repository at one commit, read through the hub's client and its local cache.

    Raises:
        UserError: if the repository or the revision does not exist, or is neither reachable nor cached.
    """

    def __init__(self, repo: str, revision: str | None, cache: Path, hashes: HashCache) -> None:
        self.repo = repo
        self.title = repo
        self.hashes = hashes
        self.listing, self.offline_error = list_repository(repo, revision or "main", cache)
        self.names = frozenset(self.listing.files)

    @property
    @override
    def folder(self) -> Path:
        small = [name for name in sorted(self.names) if "/" not in name and Path(name).suffix in SMALL_SUFFIXES]
        for name in small:
            self.path(name)
        return self.path("config.json").parent

    @override
    def path(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        self.require(name)
        if path := self.local_path(name):
            return path
        try:
            if self.offline_error:  # the client would retry many times
                raise self.offline_error
            with translate_hub_errors(self.repo, name):
                return Path(hf_hub_download(self.repo, name, revision=self.listing.commit))
        except HubUnreachableError as why:
            mend = f"connect and run again, or run `hf download {self.repo}` where a network is available"
            raise UserError(f"{name} of {self.repo} is not on this machine and {why}; {mend}") from None

    @override
    def local_path(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, name, revision=self.listing.commit)
        return Path(found) if isinstance(found, str) else None

    @override
    def expected_sha256(self, name: str) -> str | None:
        return self.listing.files[name]

    @override
    def sha256(self, name: str) -> str:
        return self.expected_sha256(name) or self.hashes(self.path(name))


@dataclass(frozen=True)
class RepositoryListing:
    """Files of a repository at a commit, with their SHA-256 where the hub stores one (it does for weights)."""

    commit: str
    files: dict[str, str | None]


def list_repository(repo: str, revision: str, cache: Path) -> "tuple[RepositoryListing, HubUnreachableError | None]":
    """List a repository: from the listing cache if ``revision`` is a commit, else from the hub, else from local files.

    Returns:
        The listing, and the reason why the hub was unreachable, if it was.

    Raises:
        UserError: if no source lists it.
    """
    from huggingface_hub import constants

    remembered_file = cache / "hub" / f"{store.content_digest([constants.ENDPOINT, repo, revision])}.json"
    known = read_listing(remembered_file)
    if known and known.commit == revision:
        return known, None
    try:
        listing = fetch_listing(repo, revision)
    except HubUnreachableError as why:
        listing = known or cached_listing(repo, revision)
        if not listing:
            raise UserError(f"{repo} is not on this machine and {why}; connect, or name a local folder") from None
        return listing, why
    if listing != known:
        store.write_json(remembered_file, {"commit": listing.commit, "files": listing.files})
    return listing, None


def read_listing(path: Path) -> RepositoryListing | None:
    """Return the listing that an earlier run wrote, or None."""
    content = documents.read_json_if_present(path) or {}
    commit, files = content.get("commit"), content.get("files")
    return RepositoryListing(commit, files) if isinstance(commit, str) and isinstance(files, dict) else None


def fetch_listing(repo: str, revision: str) -> RepositoryListing:
    """Fetch the listing from the hub; its client then also caches the commit of ``revision`` for offline use.

    Raises:
        HubUnreachableError: if the hub does not answer.
        UserError: if the hub refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with translate_hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    assert info.sha and info.siblings is not None
    with translate_hub_errors(repo, "config.json"):
        hf_hub_download(repo, "config.json", revision=revision)
    return RepositoryListing(
        info.sha, {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings}
    )


def cached_listing(repo: str, revision: str) -> RepositoryListing | None:
    """Return the files in the hub client's local cache, where each weight file is named by its SHA-256."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    blobs = {path.name: path.resolve().name for path in snapshot.iterdir() if path.is_file()}
    return RepositoryListing(
        snapshot.name, {name: blob if re.fullmatch("[0-9a-f]{64}", blob) else None for name, blob in blobs.items()}
    )
