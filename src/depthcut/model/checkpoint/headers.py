"""The header of a safetensors file, which locates its tensors. Needs no torch."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthcut.model.checkpoint.files import ModelFiles
from depthcut.runtime.errors import UserError

# The format allows 100 MB; headers of real models are far smaller than this.
HEADER_LIMIT = 16 << 20


@dataclass(frozen=True)
class TensorEntry:
    """Type, shape and position of a tensor, in bytes from the start of its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(files: ModelFiles, name: str, path: Path) -> dict[str, TensorEntry]:
    """Return the entries of a file by tensor name; safetensors checks that they fit the file.

    Raises:
        UserError: if the file is truncated, its header too long, or its format another.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > HEADER_LIMIT:
                raise files.damaged_error(name, f"its header claims {size} bytes, at most {HEADER_LIMIT} are allowed")
            with safe_open(path, framework="numpy"):
                described: dict[str, Any] = json.loads(file.read(size))
            described.pop("__metadata__", None)
            return {tensor: parse_entry(8 + size, **fields) for tensor, fields in described.items()}
    except UserError:
        raise
    except (OSError, struct.error, SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise files.damaged_error(name, str(error)[:200]) from None


def parse_entry(origin: int, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> TensorEntry:
    """Return a header entry with positions from the start of the file, whose tensors begin at ``origin``."""
    start, stop = data_offsets
    return TensorEntry(dtype, tuple(shape), origin + start, stop - start)
