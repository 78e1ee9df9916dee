"""A tensor in a file that is read when it is indexed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.model.checkpoint.headers import TensorEntry
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

# Type names in the format and in torch.
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
    """A tensor on disk that is read when it is indexed.

    Args:
        path: the file.
        entry: its position in the file.
        count: called with the number of bytes before they are read.
        check: called after they are read; raises if the file has changed since it was opened.
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
        """Size of the tensor in the file, in bytes."""
        return self._entry.nbytes

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Return the type as named in the file, for example ``BF16``."""
        return self._entry.dtype

    def __getitem__(self, index: Any) -> "torch.Tensor":
        """Read the tensor into its own memory; safetensors would hold it twice, or map the file and keep its pages.

        Raises:
            UserError: if the file has changed since it was opened.
        """
        import torch

        bytes_N = torch.empty(self.nbytes, dtype=torch.uint8)
        self.read_into(0, bytes_N)
        return self.view_bytes(bytes_N)[index]

    def read_into(self, start: int, buffer_N: "torch.Tensor") -> None:
        """Fill ``buffer_N`` (uint8, on the host) with the tensor's bytes from offset ``start``.

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
                    raise UserError(f"{self._path} was truncated while it was read")
                rest = rest[count:]
        self._check()

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """Return rows ``start`` to ``stop``, unread; count all bytes, because other processes read the rest."""
        count, *inner = self._entry.shape
        size = self.nbytes // max(count, 1)
        self._count(self.nbytes)
        shape = (stop - start, *inner)
        entry = replace(self._entry, shape=shape, start=self._entry.start + start * size, nbytes=shape[0] * size)
        return LazyTensor(self._path, entry, lambda _: None, self._check)

    def view_bytes(self, bytes_N: "torch.Tensor") -> "torch.Tensor":
        """View raw bytes as a tensor of this type and shape."""
        import torch

        return bytes_N.view(getattr(torch, TORCH_DTYPES[self._entry.dtype])).reshape(self._entry.shape)
