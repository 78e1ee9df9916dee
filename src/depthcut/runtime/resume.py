"""Resuming a training run from its checkpoint, if the training and the code are the same."""

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
    """Return the identity that a checkpoint stores under :data:`KEY`.

    Args:
        digest: digest of all inputs of the training.
    """
    return {"digest": digest, "code": provenance.code_identity(), "versions": provenance.package_versions()}


def is_resumable(path: Path, digest: str) -> bool:
    """Return whether a checkpoint can be resumed; a damaged one, or one of another run, is removed.

    Raises:
        UserError: if it was written by other code or packages, because the two parts of the training would differ.
    """
    if not os.path.lexists(path):
        return False
    found, why = read_identity(path)
    if found and found.get("digest") != digest:
        why = f"it belongs to {found.get('digest')}"
    if not found or why:
        log.warning("%s cannot be used (%s): restarting the training", path, why)
        if not ranks.global_rank():
            store.remove(path)
        return False
    if changed := identity_differences(found, checkpoint_identity(digest)):
        raise UserError(
            f"{path} was written with {', '.join(changed)}. Restore that to resume, or delete the file to start over"
        )
    return True


def identity_differences(found: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return the differences between two identities in words, such as ``torch 2.12.0 (now 2.13.0)``."""
    there: dict[str, str] = found.get("versions") or {}
    now: dict[str, str] = here["versions"]
    names = sorted(name for name in there.keys() | now.keys() if there.get(name) != now.get(name))
    own = [] if found.get("code") == here["code"] else ["another version of depthcut's code"]
    return own + [f"{name} {there.get(name, 'absent')} (now {now.get(name, 'absent')})" for name in names]


def read_identity(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Verify all checksums of a checkpoint and return its identity, or None and the fault."""
    try:
        return _read_identity(path, store.stat_mark(path.stat()))
    except Exception as error:  # anything that zipfile, pickle or torch raises for a damaged file
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:200]


@lru_cache(maxsize=4)
def _read_identity(path: Path, mark: tuple[int, ...]) -> tuple[dict[str, Any] | None, str]:
    import torch

    del mark
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            return None, f"its entry {damaged} is damaged"
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    says = found.get(KEY) if isinstance(found, dict) else None
    return (says, "") if isinstance(says, dict) else (None, "it does not name its point")
