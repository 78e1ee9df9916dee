"""Which layers go and which stay: 0-based, readable as words, written and read back as JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthcut import store

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """A cut through a model of ``depth`` layers.

    Attributes:
        depth: layers of the whole model, L.
        drop: the layers that go, sorted, each in [0, L).
        model: digest of the checkpoint that the plan was made for; empty when it fits any model of this depth.
        notes: how it was chosen (pruner, metric, score of the cut): recorded, never read.

    Raises:
        ValueError: for a layer outside the model, one named twice, or a plan that keeps no layer.
    """

    depth: int
    drop: tuple[int, ...]
    model: str = ""
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        wrong = [i for i in self.drop if not 0 <= i < self.depth]
        if wrong:
            raise ValueError(f"plan drops layer {wrong[0]}, but this model has layers 0-{self.depth - 1}")
        if len(set(self.drop)) != len(self.drop):
            raise ValueError(f"plan names a layer twice: {list(self.drop)}")
        if len(self.drop) >= self.depth:
            raise ValueError(f"plan keeps 0 of {self.depth} layers; at least one must stay")
        object.__setattr__(self, "drop", tuple(sorted(self.drop)))

    @property
    def keep(self) -> tuple[int, ...]:
        """The layers that stay, in order: new layer i is old layer ``keep[i]``."""
        gone = set(self.drop)
        return tuple(i for i in range(self.depth) if i not in gone)

    @property
    def fraction(self) -> float:
        """Share of the layers that go, n / L."""
        return len(self.drop) / self.depth

    @property
    def words(self) -> str:
        """The plan as a person reads it, e.g. ``drops layers 21-28 of 0-31, keeps 24``."""
        if not self.drop:
            return f"drops nothing, keeps all {self.depth} layers"
        gone = ", ".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in spans(self.drop))
        noun = "layer" if len(self.drop) == 1 else "layers"
        return f"drops {noun} {gone} of 0-{self.depth - 1}, keeps {len(self.keep)}"

    def write(self, path: Path) -> None:
        """Write the plan as JSON; ``drop`` holds half-open spans."""
        store.write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: ``{"format", "depth", "drop": [[start, stop), ...], "model", "notes", "words"}``."""
        drop = [list(span) for span in spans(self.drop)]
        return {
            "format": FORMAT,
            "depth": self.depth,
            "drop": drop,
            "words": self.words,
            "model": self.model,
            "notes": self.notes,
        }

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read a plan back.

        Raises:
            ValueError: if the file is missing, no plan of this format, or not a possible cut.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ValueError(f"no plan at {path}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no depthcut plan ({error!r})") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """The inverse of :meth:`to_dict`."""
        if data["format"] != FORMAT:
            raise ValueError(f"this plan has format {data['format']}; this version reads format {FORMAT}")
        drop = tuple(i for start, stop in data["drop"] for i in range(start, stop))
        return cls(depth=data["depth"], drop=drop, model=data.get("model", ""), notes=data.get("notes", {}))


def spans(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Join sorted layer numbers into half-open spans: (3, 4, 5, 9) becomes [(3, 6), (9, 10)]."""
    joined: list[tuple[int, int]] = []
    for layer in layers:
        if joined and joined[-1][1] == layer:
            joined[-1] = (joined[-1][0], layer + 1)
        else:
            joined.append((layer, layer + 1))
    return joined
