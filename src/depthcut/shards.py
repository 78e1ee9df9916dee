"""The safetensors files of a model: which tensor is where, read one at a time, every byte counted."""

import json
import re
import struct
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.files import Files
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The format allows 100 MB; no real model's header comes near this.
HEADER_LIMIT = 16 << 20
# The names of types, in the format and in torch.
TYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


class Slice:
    """A tensor on the disk: indexing reads it."""

    def __init__(self, path: Path, entry: "Entry", count: Callable[[int], None]) -> None:
        self._path = path
        self._entry = entry
        self._count = count

    @property
    def nbytes(self) -> int:
        """The tensor's size in the file."""
        return self._entry.nbytes

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """The tensor's type as the file has it, e.g. ``BF16``."""
        return self._entry.dtype

    def __getitem__(self, index: Any) -> "torch.Tensor":
        """Read it, straight into its own memory: safetensors would hold it twice, or map the file and keep its pages.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        import torch

        bytes_N = torch.empty(self.nbytes, dtype=torch.uint8)
        self.fill(0, bytes_N)
        return self.shaped(bytes_N)[index]

    def fill(self, start: int, buffer_N: "torch.Tensor") -> None:
        """Read as many of the tensor's bytes as ``buffer_N`` (uint8, on the host) has, from ``start`` on.

        Raises:
            UserError: if the file has been cut short since it was opened.
        """
        self._count(len(buffer_N))
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._entry.start + start)
            rest = buffer_N.numpy().data
            while rest:
                got = file.readinto(rest)
                if not got:
                    raise UserError(f"{self._path} has been cut short while it was read")
                rest = rest[got:]

    def rows(self, start: int, stop: int) -> "Slice":
        """The rows ``start`` to ``stop`` of the tensor, unread. All of its bytes count: others read the other rows."""
        count, *inner = self._entry.shape
        size = self.nbytes // max(count, 1)
        self._count(self.nbytes)
        shape = (stop - start, *inner)
        some = replace(self._entry, shape=shape, start=self._entry.start + start * size, nbytes=shape[0] * size)
        return Slice(self._path, some, lambda _: None)

    def shaped(self, bytes_N: "torch.Tensor") -> "torch.Tensor":
        """The tensor that these bytes are."""
        import torch

        return bytes_N.view(getattr(torch, TYPES[self._entry.dtype])).reshape(self._entry.shape)


class Shards:
    """The tensors of a model's files.

    Attributes:
        homes: for each tensor the name of its file.
        bytes_read: bytes of all the tensors read so far.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.homes = homes(files)
        self.bytes_read = 0
        self._open: dict[str, tuple[Path, dict[str, Entry]]] = {}
        self._lock = threading.Lock()  # several threads read

    def slices(self, names: Collection[str]) -> dict[str, Slice]:
        """These tensors, unread; the files that hold them are fetched and checked now.

        Raises:
            UserError: if one of the files cannot be had or is damaged.
        """
        return {name: self._slice(name) for name in names}

    def _slice(self, name: str) -> Slice:
        home = self.homes[name]
        if home not in self._open:
            path = self.files.whole(home)
            self._open[home] = path, header(self.files, home, path)
        path, entries = self._open[home]
        if name not in entries:
            raise self.files.damaged(home, f"{INDEX} promises {name}, which it does not hold")
        if entries[name].dtype not in TYPES:
            raise UserError(f"{self.files.title}: {name} is of type {entries[name].dtype}; read are {', '.join(TYPES)}")
        return Slice(path, entries[name], self._count)

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size


def weights(files: Files) -> tuple[str, ...]:
    """The names of the files that hold the model.

    Raises:
        UserError: if there is none in safetensors, or one of them is missing.
    """
    if INDEX not in files.names and SINGLE in files.names:
        return (SINGLE,)
    return tuple(sorted(set(homes(files).values())))


def homes(files: Files) -> dict[str, str]:
    """For each tensor the file that holds it, as the index says, or the only file's header.

    Raises:
        UserError: as :func:`weights`, and if the index names a file that is no plain name or not there.
    """
    if INDEX not in files.names:
        if SINGLE not in files.names:
            raise UserError(unreadable(files))
        return dict.fromkeys(header(files, SINGLE, files.whole(SINGLE)), SINGLE)
    places = files.json(INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise files.damaged(INDEX, "no weight_map")
    for name in sorted(set(map(str, places.values()))):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise files.damaged(INDEX, f"{name!r} is no plain name of a safetensors file")
        files.require(name)
    return places


def unreadable(files: Files) -> str:
    """Why a model without safetensors is not opened."""
    pickles = sorted(name for name in files.names if name.endswith((".bin", ".pt", ".pth")))
    packed = sorted(name for name in files.names if name.endswith(".gguf"))
    if packed:
        return f"{files.title} has no {SINGLE}, but {packed[0]}: give that file itself as the model's path"
    if pickles:
        mend = "take a copy in safetensors; on the hub many have one at model.revision=refs/pr/N"
        return f"{files.title} has only pickled weights ({pickles[0]}), which can run code and are never opened; {mend}"
    return f"{files.title} has no weights: wanted {SINGLE}, or {INDEX} and its shards"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in its file, in bytes from the file's start, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def header(files: Files, name: str, path: Path) -> dict[str, Entry]:
    """The tensors in a file, by name. Needs no torch; that the header fits the file is for safetensors to check.

    Raises:
        UserError: if the file is cut short, too long or none of this format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > HEADER_LIMIT:
                raise files.damaged(name, f"its header claims {size} bytes; at most {HEADER_LIMIT} are read")
            with safe_open(path, framework="numpy"):
                described: dict[str, Any] = json.loads(file.read(size))
    except (OSError, struct.error, SafetensorError) as error:
        raise files.damaged(name, str(error)) from None
    described.pop("__metadata__", None)
    return {tensor: entry(8 + size, **fields) for tensor, fields in described.items()}


def entry(origin: int, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> Entry:
    """An entry of a header whose file's tensors begin at ``origin``."""
    start, stop = data_offsets
    return Entry(dtype, tuple(shape), origin + start, stop - start)
