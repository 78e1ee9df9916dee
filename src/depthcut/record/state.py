"""State of a point, from the files in its folder: its record, its failure, its lock."""

import platform
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from depthcut.record import document
from depthcut.record.document import FAILURE, FORMAT
from depthcut.runtime import documents, store
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError

PointState = Literal["done", "failed", "running", "left"]


def lock_path(folder: Path) -> Path:
    """Return the path of the lock of a point's folder."""
    return folder.with_name(f".{folder.name}.lock")


def write_failure(folder: Path, reason: str, error: BaseException | None = None) -> None:
    """Write the failure of a point. Errors of the file system are ignored: a full disk must not hide the reason."""
    failure = {
        "format": FORMAT,
        "digest": folder.name,
        "reason": " ".join(reason.split()),
        "traceback": "".join(traceback.format_exception(error)) if error else "",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
    }
    with suppress(OSError):
        store.write_json(folder / FAILURE, failure)


def forget_failure(folder: Path) -> None:
    """Remove the failure of an earlier attempt."""
    with suppress(OSError):
        (folder / FAILURE).unlink(missing_ok=True)


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Return the last failure of a point, or None."""
    found = documents.read_json_if_present(folder / FAILURE)
    return found if found and isinstance(found.get("reason"), str) else None


def point_state(folder: Path) -> PointState:
    """Return the state of a point. Any valid record counts as done, even if more was requested since."""
    if read_record(folder):
        return "done"
    if is_running(folder):
        return "running"
    return "failed" if read_failure(folder) else "left"


def is_running(folder: Path) -> bool:
    """Return whether a process is working on the point."""
    if not lock_path(folder).exists():
        return False
    try:
        with store.lock(lock_path(folder)).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except (OSError, UserError):
        return False


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a point, or None if it has none that this version can read."""
    try:
        return document.load_record(folder)
    except (FileNotFoundError, DamagedError):
        return None
