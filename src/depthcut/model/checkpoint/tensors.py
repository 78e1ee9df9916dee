"""Lazily read safetensors files: tensors are located by their headers, read one at a time, and counted in bytes."""

import re
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.checkpoint.headers import TensorEntry, read_header
from depthcut.model.checkpoint.lazy_tensor import TORCH_DTYPES, LazyTensor
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    pass

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class TensorFiles:
    """The safetensors files of a model.

    Attributes:
        bytes_read: total bytes of the tensors read so far.
    """

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.bytes_read = 0
        self._headers: dict[str, dict[str, TensorEntry]] = {}
        self._verified: dict[str, Path] = {}
        self._lock = threading.Lock()  # tensors are read by several threads

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """File name of each tensor, from the index or from the header of the only file.

        Raises:
            UserError: if there are no safetensors weights, or the index is damaged.
        """
        if INDEX_FILE in self.files.names:
            return indexed(self.files)
        return dict.fromkeys(self.entries(self.names[0]), SINGLE_FILE)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weight files. Raises as :attr:`weight_map`."""
        if INDEX_FILE in self.files.names:
            return tuple(sorted(set(self.weight_map.values())))
        if SINGLE_FILE not in self.files.names:
            raise UserError(missing_weights_message(self.files))
        return (SINGLE_FILE,)

    @property
    def listed(self) -> bool:
        """Whether the names of the tensors are known without downloading a weight file."""
        return INDEX_FILE in self.files.names or self.files.local_path(SINGLE_FILE) is not None

    def entries(self, file: str) -> dict[str, TensorEntry]:
        """Return the header of a file, downloading the file if necessary.

        Raises:
            UserError: if the file is unavailable or damaged.
        """
        if file not in self._headers:
            path = self.files.path(file)
            self.files.pin(file)
            self._headers[file] = read_header(self.files, file, path)
        return self._headers[file]

    def lazy_tensors(self, names: Collection[str]) -> dict[str, LazyTensor]:
        """Return these tensors, unread; download and verify their files now.

        Raises:
            UserError: if a file is unavailable or damaged.
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
                f"{self.files.title}: {name} has type {entries[name].dtype}; supported: {', '.join(TORCH_DTYPES)}"
            )
        check = partial(self.files.check_unchanged, file)
        return LazyTensor(self._verified[file], entries[name], self._count, check)

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size


def indexed(files: ModelFiles) -> dict[str, str]:
    """Return the file name of each tensor, from the index.

    Raises:
        UserError: if the index is damaged, or names a file that is missing or has no plain safetensors name.
    """
    places = files.read_json(INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise files.damaged_error(INDEX_FILE, "no weight_map")
    for name in sorted(set(map(str, places.values()))):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise files.damaged_error(INDEX_FILE, f"{name!r} is not a plain safetensors file name")
        files.require(name)
    return places


def layer_lists(names: Iterable[str]) -> dict[str, int]:
    """Return, for each dotted prefix with numbers after it, the length of the run 0, 1, 2, ... without a gap."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        if found := re.match(r"(.+?)\.(\d{1,9})\.", name):
            numbers[found[1]].add(int(found[2]))
    return {prefix: next(i for i in count() if i not in found) for prefix, found in numbers.items()}


def absent(files: ModelFiles, name: str, file: str) -> str:
    """Return the message for a tensor that the index names and its file lacks."""
    mend = "the index and its files are of two versions: download both again, or remove the line from the index"
    return f"{files.title}: {INDEX_FILE} maps {name} to {file}, which does not contain it; {mend}"


def missing_weights_message(files: ModelFiles) -> str:
    """Return the reason why a model without safetensors cannot be opened."""
    pickles = sorted(name for name in files.names if name.endswith((".bin", ".pt", ".pth")))
    packed = sorted(name for name in files.names if name.endswith(".gguf"))
    if packed:
        return f"{files.title} has no {SINGLE_FILE}, but {packed[0]}: set that file itself as the model's path"
    if pickles:
        mend = "use a copy in safetensors; many models on the hub have one at model.revision=refs/pr/N"
        return f"{files.title} has only pickled weights ({pickles[0]}), which can run code and are never opened; {mend}"
    return f"{files.title} has no weights: expected {SINGLE_FILE}, or {INDEX_FILE} and its shards"
