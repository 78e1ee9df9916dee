"""The safetensors files of a model: which tensor is where, read one at a time, every byte counted."""

import re
import struct
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.files import Files

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The format allows 100 MB; no real model's header comes near this.
HEADER_LIMIT = 16 << 20


class Slice:
    """A tensor on the disk: indexing reads it. This is what transformers takes in place of a tensor."""

    def __init__(self, lazy: Any, count: Callable[[int], None]) -> None:
        self._lazy = lazy
        self._count = count

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return self._lazy.get_shape()

    def get_dtype(self) -> str:
        """The tensor's type as the file has it, e.g. ``BF16``."""
        return self._lazy.get_dtype()

    def __getitem__(self, index: Any) -> "torch.Tensor":
        """Read it, or a part of it."""
        tensor: torch.Tensor = self._lazy[index]
        self._count(tensor.nbytes)
        return tensor


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
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()  # transformers reads from several threads

    def slices(self, names: Collection[str]) -> dict[str, Slice]:
        """These tensors, unread; the files that hold them are fetched and checked now.

        Raises:
            ValueError: if one of the files cannot be had or is damaged.
        """
        return {name: Slice(self._file(self.homes[name]).get_slice(name), self._count) for name in names}

    def _file(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if name not in self._open:
            path = self.files.whole(name)
            self.examine(name, path)
            try:  # not mapped into memory: a mapped page stays counted as ours, and a shrinking file would kill us
                self._open[name] = safe_open(path, framework="pt", device="cpu", backend="pread")
            except (OSError, SafetensorError) as error:
                raise self.files.damaged(name, str(error)) from None
        return self._open[name]

    def examine(self, name: str, path: Path) -> None:
        """Check that a file holds the tensors that the index places there.

        Raises:
            ValueError: if it does not, or is damaged.
        """
        lost = {tensor for tensor, home in self.homes.items() if home == name} - header(self.files, name, path)
        if lost:
            raise self.files.damaged(name, f"{INDEX} promises {min(lost)}, which it does not hold")

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size


def weights(files: Files) -> tuple[str, ...]:
    """The names of the files that hold the model.

    Raises:
        ValueError: if there is none in safetensors, or one of them is missing.
    """
    if INDEX not in files.names and SINGLE in files.names:
        return (SINGLE,)
    return tuple(sorted(set(homes(files).values())))


def homes(files: Files) -> dict[str, str]:
    """For each tensor the file that holds it, as the index says, or the only file's header.

    Raises:
        ValueError: as :func:`weights`, and if the index names a file that is no plain name or not there.
    """
    if INDEX not in files.names:
        if SINGLE not in files.names:
            raise ValueError(unreadable(files))
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


def header(files: Files, name: str, path: Path) -> set[str]:
    """The names of the tensors in a file, whose header must fit its length. Needs no torch.

    Raises:
        ValueError: if the file is cut short, too long or none of this format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
        if size > HEADER_LIMIT:
            raise files.damaged(name, f"its header claims {size} bytes; at most {HEADER_LIMIT} are read")
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (OSError, struct.error, SafetensorError) as error:
        raise files.damaged(name, str(error)) from None
