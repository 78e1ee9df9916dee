"""Remaining width of each layer, on disk next to the plan: ``width.json``."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from depthcut.runtime import documents, store
from depthcut.runtime.errors import UserError

FORMAT = 1
WIDTHS_FILE = "width.json"
GroupKind = Literal["heads", "channels"]
"""Groups that are pruned together: KV groups of heads, and channels of the FFN."""
GroupKey = tuple[int, GroupKind]
"""Index of a layer, and kind of its groups."""
GROUP_KINDS: tuple[GroupKind, ...] = ("heads", "channels")


@dataclass(frozen=True)
class Widths:
    """A cut through the width of a model, for each layer that its plan keeps.

    Attributes:
        original: for each layer and kind of group, the number of groups before the cut.
        kept: for each layer and kind of group, the sorted indices of those that stay.
    """

    original: tuple[Mapping[GroupKind, int], ...]
    kept: tuple[Mapping[GroupKind, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        assert len(self.original) == len(self.kept)
        for whole, kept in zip(self.original, self.kept, strict=True):
            assert whole.keys() == kept.keys()
            assert all(kept[kind] and {*kept[kind]} <= {*range(count)} for kind, count in whole.items())

    def count(self, kind: GroupKind) -> int:
        """Return the number of groups of a kind that stay, over all layers."""
        return sum(len(kept.get(kind, ())) for kept in self.kept)

    def narrowed_groups(self) -> dict[GroupKey, tuple[int, ...]]:
        """Return the groups that stay, for each layer and kind that loses some."""
        return {
            (number, kind): kept[kind]
            for number, (whole, kept) in enumerate(zip(self.original, self.kept, strict=True))
            for kind in GROUP_KINDS
            if kind in whole and len(kept[kind]) < whole[kind]
        }

    @property
    def summary(self) -> str:
        """Summary for people: ``keeps 64 of 90 KV heads and 26112 of 46080 FFN channels``, ...."""
        nouns: dict[GroupKind, str] = {"heads": "KV heads", "channels": "FFN channels"}
        totals = {kind: sum(whole.get(kind, 0) for whole in self.original) for kind in nouns}
        parts = [f"{self.count(kind)} of {totals[kind]} {nouns[kind]}" for kind in nouns if totals[kind]]
        layers = len({number for number, _ in self.narrowed_groups()})
        return f"keeps {' and '.join(parts)}; {layers} of {len(self.original)} layers are narrower"

    def write(self, path: Path) -> None:
        """Write the file with one line per layer; indented JSON would put each channel on its own line."""
        layers = zip(self.original, self.kept, strict=True)
        rows = (json.dumps({kind: {"of": of[kind], "keep": list(kept[kind])} for kind in of}) for of, kept in layers)
        head = f'{{"format": {FORMAT}, "words": {json.dumps(self.summary)}, "layers": [\n'
        store.write_text(path, head + ",\n".join(rows) + "\n]}\n")

    @classmethod
    def read(cls, path: Path) -> "Widths":
        """Read the file.

        Raises:
            UserError: if it is missing, damaged, or of a format that this version does not know.
        """
        try:
            described = documents.read_json(path)
            if described["format"] != FORMAT:
                raise UserError(f"expected format {FORMAT}, got {described['format']!r}")
            return cls.from_json(described["layers"])
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{path} is not a description of widths ({error!r}); export the model again") from None

    @classmethod
    def read_if_present(cls, folder: Path) -> "Widths | None":
        """Read the widths in the folder of a model or its adapters; None if it has none. Raises as :meth:`read`."""
        return cls.read(folder / WIDTHS_FILE) if (folder / WIDTHS_FILE).exists() else None

    @classmethod
    def from_json(cls, layers: Iterable[Mapping[str, Any]]) -> "Widths":
        """Build widths from the entry ``layers`` of the file."""
        rows = list(layers)
        return cls(
            tuple({kind: int(row[kind]["of"]) for kind in GROUP_KINDS if kind in row} for row in rows),
            tuple({kind: tuple(map(int, row[kind]["keep"])) for kind in GROUP_KINDS if kind in row} for row in rows),
        )
