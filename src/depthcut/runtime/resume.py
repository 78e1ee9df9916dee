"""Resuming a training run from its checkpoint: only the same training, under the same code, is resumed."""

import logging
import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from depthcut.runtime import provenance, ranks, store
from depthcut.runtime.errors import UserError

KEY = "depthcut"
log = logging.getLogger("depthcut")


def checkpoint_identity(digest: str) -> dict[str, Any]:
    """Return what a checkpoint says of itself, under :data:`KEY`.

    Args:
        digest: of all that the training reads.
    """
    return {"digest": digest, "code": provenance.code_identity(), "versions": provenance.package_versions()}


def is_resumable(path: Path, digest: str) -> bool:
    """Return whether there is a checkpoint to resume from; one that is damaged or another run's is removed.

    Raises:
        UserError: if it was written under other code: one half of the training would differ from the other.
    """
    if not os.path.lexists(path):
        return False
    found, why = read_identity(path)
    if found and found.get("digest") != digest:
        why = f"it belongs to {found.get('digest')}"
    if not found or why:
        log.warning("%s cannot be used (%s): training begins anew", path, why)
        if not ranks.global_rank():
            store.remove(path)
        return False
    if changed := identity_differences(found, checkpoint_identity(digest)):
        raise UserError(
            f"{path} was written under {', '.join(changed)}. Restore that to resume, or delete the file to begin anew"
        )
    return True


def identity_differences(found: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return in words what differs between two identities, as ``torch 2.12.0 (now 2.13.0)``."""
    there: dict[str, str] = found.get("versions") or {}
    now: dict[str, str] = here["versions"]
    names = sorted(name for name in there.keys() | now.keys() if there.get(name) != now.get(name))
    own = [] if found.get("code") == here["code"] else ["other code of depthcut"]
    return own + [f"{name} {there.get(name, 'absent')} (now {now.get(name, 'absent')})" for name in names]


def read_identity(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return what a checkpoint says of itself, after comparing every byte with its checksums; or why it cannot."""
    try:
        return _read_identity(path, store.stat_mark(path.stat()))
    except Exception as error:  # whatever zipfile, pickle or torch make of a damaged file
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:200]


@lru_cache(maxsize=4)
def _read_identity(path: Path, mark: tuple[int, ...]) -> tuple[dict[str, Any] | None, str]:
    import torch

    del mark
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            return None, f"{damaged} in it is damaged"
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    says = found.get(KEY) if isinstance(found, dict) else None
    return (says, "") if isinstance(says, dict) else (None, "it does not say whose it is")
