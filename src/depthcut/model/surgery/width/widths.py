"""What is left of each layer's width, on the disk beside the plan: ``width.json``."""

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
"""Groups that go as one: KV groups of heads, and channels of the FFN."""
GroupKey = tuple[int, GroupKind]
"""The number of a layer, and which of its groups."""
GROUP_KINDS: tuple[GroupKind, ...] = ("heads", "channels")


@dataclass(frozen=True)
class Widths:
    """A cut through the width of a model, layer by layer of what its plan kept.

    Attributes:
        whole: for each layer and kind of group how many there were.
        kept: the numbers of those that stay, sorted.
    """

    original: tuple[Mapping[GroupKind, int], ...]
    kept: tuple[Mapping[GroupKind, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        assert len(self.original) == len(self.kept)
        for whole, kept in zip(self.original, self.kept, strict=True):
            assert whole.keys() == kept.keys()
            assert all(kept[kind] and {*kept[kind]} <= {*range(count)} for kind, count in whole.items())

    def count(self, kind: GroupKind) -> int:
        """How many groups of a kind stay, in all layers."""
        return sum(len(kept.get(kind, ())) for kept in self.kept)

    def narrowed_groups(self) -> dict[GroupKey, tuple[int, ...]]:
        """By the number of a layer and a kind that loses groups there, those that stay."""
        return {
            (number, kind): kept[kind]
            for number, (whole, kept) in enumerate(zip(self.original, self.kept, strict=True))
            for kind in GROUP_KINDS
            if kind in whole and len(kept[kind]) < whole[kind]
        }

    @property
    def summary(self) -> str:
        """As a person reads it: ``keeps 64 of 90 KV heads and 26112 of 46080 FFN channels``, ...."""
        nouns: dict[GroupKind, str] = {"heads": "KV heads", "channels": "FFN channels"}
        totals = {kind: sum(whole.get(kind, 0) for whole in self.original) for kind in nouns}
        parts = [f"{self.count(kind)} of {totals[kind]} {nouns[kind]}" for kind in nouns if totals[kind]]
        layers = len({number for number, _ in self.narrowed_groups()})
        return f"keeps {' and '.join(parts)}; {layers} of {len(self.original)} layers are narrower"

    def write(self, path: Path) -> None:
        """Write it, a layer a line: indented JSON would give each channel a line of its own."""
        layers = zip(self.original, self.kept, strict=True)
        rows = (json.dumps({kind: {"of": of[kind], "keep": list(kept[kind])} for kind in of}) for of, kept in layers)
        head = f'{{"format": {FORMAT}, "words": {json.dumps(self.summary)}, "layers": [\n'
        store.write_text(path, head + ",\n".join(rows) + "\n]}\n")

    @classmethod
    def read(cls, path: Path) -> "Widths":
        """Read it back.

        Raises:
            UserError: if it is missing, damaged, or of a format that this version does not know.
        """
        try:
            described = documents.read_json(path)
            if described["format"] != FORMAT:
                raise UserError(f"wanted format {FORMAT}, got {described['format']!r}")
            return cls.from_json(described["layers"])
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{path} holds no widths ({error!r}); export the model again") from None

    @classmethod
    def read_if_present(cls, folder: Path) -> "Widths | None":
        """The widths beside a model or its adapters; None where nothing was narrowed. Raises as :meth:`read`."""
        return cls.read(folder / WIDTHS_FILE) if (folder / WIDTHS_FILE).exists() else None

    @classmethod
    def from_json(cls, layers: Iterable[Mapping[str, Any]]) -> "Widths":
        """The inverse of what is written of the layers."""
        rows = list(layers)
        return cls(
            tuple({kind: int(row[kind]["of"]) for kind in GROUP_KINDS if kind in row} for row in rows),
            tuple({kind: tuple(map(int, row[kind]["keep"])) for kind in GROUP_KINDS if kind in row} for row in rows),
        )
