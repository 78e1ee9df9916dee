"""The safetensors files of a model: which tensor is where, read one at a time, every byte counted."""

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.checkpoint.headers import TensorEntry, read_header
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# The names of types, in the format and in torch.
TORCH_DTYPES = {
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


class LazyTensor:
    """A tensor on the disk: indexing reads it.

    Args:
        path: of its file.
        entry: its place there.
        count: called with the number of bytes before they are read.
        check: called after they are read; raises if the file is not the one that was opened.
    """

    def __init__(
        self, path: Path, entry: TensorEntry, count: Callable[[int], None], check: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path
        self._entry = entry
        self._count = count
        self._check = check

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
            UserError: if the file has changed since it was opened.
        """
        import torch

        bytes_N = torch.empty(self.nbytes, dtype=torch.uint8)
        self.read_into(0, bytes_N)
        return self.view_bytes(bytes_N)[index]

    def read_into(self, start: int, buffer_N: "torch.Tensor") -> None:
        """Read as many of the tensor's bytes as ``buffer_N`` (uint8, on the host) has, from ``start`` on.

        Raises:
            UserError: if the file has changed since it was opened.
        """
        self._count(len(buffer_N))
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._entry.start + start)
            rest = buffer_N.numpy().data
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise UserError(f"{self._path} has been cut short while it was read")
                rest = rest[count:]
        self._check()

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """The rows ``start`` to ``stop`` of the tensor, unread. All of its bytes count: others read the other rows."""
        count, *inner = self._entry.shape
        size = self.nbytes // max(count, 1)
        self._count(self.nbytes)
        shape = (stop - start, *inner)
        entry = replace(self._entry, shape=shape, start=self._entry.start + start * size, nbytes=shape[0] * size)
        return LazyTensor(self._path, entry, lambda _: None, self._check)

    def view_bytes(self, bytes_N: "torch.Tensor") -> "torch.Tensor":
        """The tensor that these bytes are."""
        import torch

        return bytes_N.view(getattr(torch, TORCH_DTYPES[self._entry.dtype])).reshape(self._entry.shape)


class TensorFiles:
    """The tensors of a model's files.

    Attributes:
        bytes_read: bytes of all the tensors read so far.
    """

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.bytes_read = 0
        self._headers: dict[str, dict[str, TensorEntry]] = {}
        self._verified: dict[str, Path] = {}
        self._lock = threading.Lock()  # several threads read

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """For each tensor the name of its file, as the index says, or the only file's header.

        Raises:
            UserError: if there are no weights in safetensors, or the index is damaged.
        """
        if INDEX_FILE in self.files.names:
            return indexed(self.files)
        return dict.fromkeys(self.entries(self.names[0]), SINGLE_FILE)

    @property
    def names(self) -> tuple[str, ...]:
        """The files that hold the model. Raises as :attr:`homes`."""
        if INDEX_FILE in self.files.names:
            return tuple(sorted(set(self.weight_map.values())))
        if SINGLE_FILE not in self.files.names:
            raise UserError(missing_weights_message(self.files))
        return (SINGLE_FILE,)

    @property
    def listed(self) -> bool:
        """Whether the tensors' names are known without fetching a file of weights."""
        return INDEX_FILE in self.files.names or self.files.local_path(SINGLE_FILE) is not None

    def entries(self, file: str) -> dict[str, TensorEntry]:
        """The header of a file, which must be on this machine or is fetched.

        Raises:
            UserError: if it cannot be had or is damaged.
        """
        if file not in self._headers:
            path = self.files.path(file)
            self.files.pin(file)
            self._headers[file] = read_header(self.files, file, path)
        return self._headers[file]

    def lazy_tensors(self, names: Collection[str]) -> dict[str, LazyTensor]:
        """These tensors, unread; the files that hold them are fetched and checked now.

        Raises:
            UserError: if one of the files cannot be had or is damaged.
        """
        return {name: self._lazy_tensor(name) for name in names}

    def _lazy_tensor(self, name: str) -> LazyTensor:
        file = self.weight_map[name]
        if file not in self._verified:
            self._verified[file] = self.files.verified_path(file)
        entries = self.entries(file)
        if name not in entries:
            raise UserError(absent(self.files, name, file))
        if entries[name].dtype not in TORCH_DTYPES:
            raise UserError(
                f"{self.files.title}: {name} is of type {entries[name].dtype}; read are {', '.join(TORCH_DTYPES)}"
            )
        check = partial(self.files.check_unchanged, file)
        return LazyTensor(self._verified[file], entries[name], self._count, check)

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size


def indexed(files: ModelFiles) -> dict[str, str]:
    """For each tensor the file that holds it, as the index says.

    Raises:
        UserError: if the index is damaged, or names a file that is no plain name or not there.
    """
    places = files.read_json(INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise files.damaged_error(INDEX_FILE, "no weight_map")
    for name in sorted(set(map(str, places.values()))):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise files.damaged_error(INDEX_FILE, f"{name!r} is no plain name of a safetensors file")
        files.require(name)
    return places


def layer_lists(names: Iterable[str]) -> dict[str, int]:
    """For each dotted name that numbers follow, how many of the numbers 0, 1, 2, ... follow it without a gap."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        if found := re.match(r"(.+?)\.(\d{1,9})\.", name):
            numbers[found[1]].add(int(found[2]))
    return {prefix: next(i for i in count() if i not in found) for prefix, found in numbers.items()}


def absent(files: ModelFiles, name: str, file: str) -> str:
    """The message for a tensor that the index names and its file does not hold."""
    mend = "the index and its files are of two versions: fetch them together, or take the line out of the index"
    return f"{files.title}: {INDEX_FILE} names {name} in {file}, which does not hold it; {mend}"


def missing_weights_message(files: ModelFiles) -> str:
    """Why a model without safetensors is not opened."""
    pickles = sorted(name for name in files.names if name.endswith((".bin", ".pt", ".pth")))
    packed = sorted(name for name in files.names if name.endswith(".gguf"))
    if packed:
        return f"{files.title} has no {SINGLE_FILE}, but {packed[0]}: give that file itself as the model's path"
    if pickles:
        mend = "take a copy in safetensors; on the hub many have one at model.revision=refs/pr/N"
        return f"{files.title} has only pickled weights ({pickles[0]}), which can run code and are never opened; {mend}"
    return f"{files.title} has no weights: wanted {SINGLE_FILE}, or {INDEX_FILE} and its shards"
