"""Filling of the gaps of a cut, in memory and on disk: tensors, and JSON that says where they belong in the model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from depthcut.runtime import documents, store
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError

FORMAT = 1
DESCRIPTION_FILE, TENSORS_FILE = "replacement.json", "replacement.safetensors"
FillingKind = Literal["weights", "layers", "bridges", "shared"]


@dataclass(frozen=True)
class Filling:
    """Result of a replacement method.

    Attributes:
        kind: ``weights``: new weights for kept layers. ``layers``: plain layers in the gaps. ``bridges``: maps of the
            residual stream. ``shared``: layers that borrow the weights of kept ones.
        tensors: by the index of a layer of the full model, or of a gap's first layer, and a name: ``7.mlp.bias``.
        options: other JSON data needed to insert them.
    """

    kind: FillingKind
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def by_layer(self) -> dict[int, dict[str, Tensor]]:
        """Return the tensors of each layer, or gap, by their names in it."""
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            number, _, rest = name.partition(".")
            found.setdefault(int(number), {})[rest] = tensor
        return found

    def write(self, folder: Path) -> None:
        """Write the filling as two files."""
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}, folder / TENSORS_FILE
        )
        store.write_json(folder / DESCRIPTION_FILE, {"format": FORMAT, "kind": self.kind, "more": self.options})

    @classmethod
    def read(cls, folder: Path) -> "Filling":
        """Read a filling.

        Raises:
            UserError: if it is damaged, or of a format that this version does not know.
        """
        try:
            described = documents.read_json(folder / DESCRIPTION_FILE)
            tensors = load_file(folder / TENSORS_FILE)
        except (OSError, SafetensorError, DamagedError) as error:
            raise UserError(f"the replacement in {folder} is damaged ({error}); export the model again") from None
        if described.get("format") != FORMAT:
            raise UserError(f"{folder / DESCRIPTION_FILE}: expected format {FORMAT}, got {described.get('format')}")
        if described.get("kind") not in get_args(FillingKind) or not isinstance(described.get("more"), dict):
            raise UserError(f"{folder / DESCRIPTION_FILE} is not a replacement; export the model again")
        return cls(described["kind"], tensors, described["more"])


def flatten_tensors(layers: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of several layers under the flat names of a filling."""
    return {f"{number}.{name}": tensor for number, tensors in layers.items() for name, tensor in tensors.items()}
