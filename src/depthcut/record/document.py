"""Validation of the files that a run left; since then anything may have happened to them."""

import logging
import math
from pathlib import Path
from typing import Any

from depthcut.cut.plan import Plan
from depthcut.runtime import documents
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError

FORMAT = 1
LIMIT = 8 << 20  # bytes of a record; a record of 100 tasks takes 50 kB
FAILURE = "failure.json"
GROUPS = ("model", "metric", "prune", "replace", "heal")
FILES = ("config.yaml", "run.log", "plan.json", "heal.csv", "record.json", FAILURE)
MEASURED = {"part": str, "settings": dict, "sample": dict, "numbers": dict}
log = logging.getLogger("depthcut")


def load_record(folder: Path) -> dict[str, Any]:
    """Return the record in a point's folder.

    Raises:
        FileNotFoundError: if it does not exist.
        DamagedError: if it is invalid, of another version, or of another point.
    """
    path = folder / "record.json"
    record = documents.read_json(path, LIMIT)
    if record.get("format") != FORMAT:
        raise DamagedError(path, f"format {record.get('format')!r}, this version reads {FORMAT}")
    if why := record_fault(record):
        raise DamagedError(path, why)
    if record["digest"] != folder.name:
        raise DamagedError(path, f"it is the record of point {record['digest']}")
    return record


def record_fault(record: dict[str, Any]) -> str | None:
    """Return the fault of a record of this version, or None."""
    try:
        Plan.from_dict(record["plan"])
        words = [record["config"][group]["_target_"].split(".")[-2] for group in GROUPS]
        lists: list[Any] = [record["exported"], *record["evaluated"].values()]
        texts = [*words, record["digest"], record["finished"], record["study"], record["plan"]["words"]]
        texts += [text for each in lists for text in each]
        numbers = [record["fraction"], record["config"]["seed"], *(record[key] for key in record if "/" in key)]
        entries = [each for stage in record.get("measured", {}).values() for each in stage.values()]
        numbers += [number for each in entries for number in each["numbers"].values()]
        right = all({key: type(value) for key, value in each.items()} == MEASURED for each in entries)
        right = right and all(isinstance(each, list) for each in lists) and all(isinstance(text, str) for text in texts)
        right = right and isinstance(record["plan"]["notes"], dict)
        return None if right and all(math.isfinite(number) for number in numbers) else "not a record"
    except KeyError as error:
        return f"no key {error.args[0]!r}"
    except UserError as error:  # from the plan
        return str(error)
    except (IndexError, TypeError, AttributeError, ValueError, OverflowError):
        return "not a record"


def inspect_point(folder: Path) -> None:
    """Check the files of an earlier run before the point runs, and warn of an unusable record.

    Raises:
        DamagedError: if a folder has the name of a file.
    """
    for name in FILES:
        if (folder / name).is_dir():
            raise DamagedError(folder / name, "a folder")
    try:
        load_record(folder)
    except FileNotFoundError:
        return
    except DamagedError as error:
        log.warning("%s cannot be used (%s): running the point again", error.path, error.why)
