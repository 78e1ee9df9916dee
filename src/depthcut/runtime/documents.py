"""Text files of this package, read back: complete and of the expected form, or one error that names the file.

Users may truncate, edit, copy or replace them, so no other module parses one.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from depthcut.runtime.errors import UserError

LIMIT = 256 << 20  # bytes of a JSON file: the block scores of a model of 1,000 layers take 50 MB
YAML_LIMIT = 1 << 20  # bytes of a composed config, which has about 5 kB
NESTING = 64  # levels; a composed config has 6
VALUES = 1_000_000  # values in a YAML file, where aliases can multiply them


class DamagedError(UserError):
    """A file of this package that is unreadable, or has invalid contents.

    Attributes:
        path: the file.
        why: the fault.
    """

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path} is damaged ({why}); delete it and run the same command again to recreate it")


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """Return the JSON object in a file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: if the file does not exist.
        DamagedError: if it has other contents, or is unreadable.
    """
    try:
        content = read_bounded_text(path, limit)
        return check_mapping(json.loads(content, parse_constant=refuse_constant, parse_float=finite), content, limit)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, parse_error_reason(error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises as :func:`read_json`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = read_bounded_text(path, YAML_LIMIT)
        return check_mapping(yaml.load(content, Loader=loader), content, VALUES)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DamagedError(path, parse_error_reason(error)) from None


def read_json_if_present(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if it is missing or damaged."""
    try:
        return read_json(path)
    except (FileNotFoundError, DamagedError):
        return None


def read_bounded_text(path: Path, limit: int) -> str:
    """Return the text of a file.

    Raises:
        FileNotFoundError: if the file does not exist.
        DamagedError: if it is not a regular file of at most ``limit`` bytes, or is unreadable.
        UnicodeDecodeError: if it is not UTF-8.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise DamagedError(path, "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file")
        if about.st_size > limit:
            raise DamagedError(path, f"{about.st_size} bytes, expected at most {limit}")
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise DamagedError(path, os.strerror(error.errno or 0)) from None


def check_mapping(value: Any, content: str, values: int) -> dict[str, Any]:
    """Return ``value``, parsed from ``content``, if it is a mapping that this package could have written.

    Raises:
        ValueError: if it is not a mapping, is nested too deeply, has too many values, or has text that cannot be
            encoded.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(NESTING):
        values -= sum(map(len, level))
        if values < 0:
            raise ValueError("too many values")
        level = [
            part for each in level for part in (each.values() if isinstance(each, dict) else each) if is_nested(part)
        ]
        if not level:
            break
    else:
        raise ValueError(f"nested more than {NESTING} levels deep")
    if "\\" in content:  # an escape can be half a surrogate pair
        json.dumps(value, ensure_ascii=False, default=str).encode()
    return value


def is_nested(value: Any) -> bool:
    """Return whether a value contains other values."""
    return isinstance(value, dict | list) and bool(value)


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinities: they are not JSON, and :func:`depthcut.runtime.store.write_json` writes none."""
    raise ValueError(f"{name} is not a finite number")


def finite(text: str) -> float:
    """Return a number, unless it exceeds a float's range: ``1e999`` is JSON, but parses as infinity."""
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is beyond the range of numbers")
    return number


def parse_error_reason(error: Exception) -> str:
    """Return a parser's error in one line."""
    if isinstance(error, DamagedError):
        return error.why
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair in a text"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "integer string conversion" in str(error):
        return "a number of thousands of digits"
    return " ".join(str(error).split())[:200]
