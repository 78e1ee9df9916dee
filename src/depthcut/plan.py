"""Which layers go and which stay: 0-based, readable as words, written and read back as JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from depthcut import store
from depthcut.runtime import documents
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError

FORMAT = 2
OLDER = 1  # without a unit: whole layers
DEEPEST = 10_000  # layers; a plan names each, and the deepest models of 2026 have some 200

Unit = Literal["layer", "attention", "mlp"]
NOUNS: dict[Unit, str] = {"layer": "layers", "attention": "attentions", "mlp": "MLPs"}


@dataclass(frozen=True)
class Plan:
    """A cut through a model of ``depth`` layers.

    Attributes:
        depth: layers of the whole model, L.
        drop: the layers that go, sorted, each in [0, L).
        unit: what of these layers goes: all, or their attention or MLP alone, and then the layers stay.
        model: digest of the checkpoint that the plan was made for; empty when it fits any model of this depth.
        notes: how it was chosen (pruner, metric, score of the cut): recorded, never read.

    Raises:
        UserError: for a layer outside the model, one named twice, or a plan that keeps no layer.
    """

    depth: int
    drop: tuple[int, ...]
    unit: Unit = "layer"
    model: str = ""
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        wrong = [i for i in self.drop if not 0 <= i < self.depth]
        if wrong:
            raise UserError(f"plan drops layer {wrong[0]}, but this model has layers 0-{self.depth - 1}")
        if len(set(self.drop)) != len(self.drop):
            raise UserError(f"plan names a layer twice: {list(self.drop)}")
        if len(self.drop) >= self.depth:
            raise UserError(f"plan keeps 0 of {self.depth} layers; at least one must stay")
        object.__setattr__(self, "drop", tuple(sorted(self.drop)))

    @property
    def keep(self) -> tuple[int, ...]:
        """The layers that stay, whole or halved, in order: new layer i is old layer ``keep[i]``."""
        gone = set(self.drop if self.unit == "layer" else ())
        return tuple(i for i in range(self.depth) if i not in gone)

    @property
    def fraction(self) -> float:
        """Share of the layers, or of their attentions or MLPs, that go: n / L."""
        return len(self.drop) / self.depth

    @property
    def words(self) -> str:
        """The plan as a person reads it, e.g. ``drops layers 21-28 of 0-31, keeps 24``."""
        if not self.drop:
            return f"drops nothing, keeps all {self.depth} layers"
        gone = ", ".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in spans(self.drop))
        noun = "layer" if len(self.drop) == 1 else "layers"
        half = "" if self.unit == "layer" else f"the {'MLP' if self.unit == 'mlp' else self.unit} of "
        return f"drops {half}{noun} {gone} of 0-{self.depth - 1}, keeps {self.depth - len(self.drop)}"

    @property
    def surest(self) -> str:
        """How often the block's start and its rivals win in a bootstrap, e.g. ``11 in 83%, 12 in 17%``; or nothing."""
        wins: dict[str, float] = self.notes.get("wins", {})
        return ", ".join(f"{start} in {share:.0%}" for start, share in list(wins.items())[:3])

    def write(self, path: Path) -> None:
        """Write the plan as JSON; ``drop`` holds half-open spans."""
        store.write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: ``{"format", "depth", "unit", "drop": [[start, stop), ...], "model", "notes", "words"}``."""
        drop = [list(span) for span in spans(self.drop)]
        return {
            "format": FORMAT,
            "depth": self.depth,
            "unit": self.unit,
            "drop": drop,
            "words": self.words,
            "model": self.model,
            "notes": self.notes,
        }

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read a plan back.

        Raises:
            UserError: if the file is missing, no plan of this format, or not a possible cut; it names the file.
        """
        try:
            return cls.from_dict(documents.read(path))
        except FileNotFoundError:
            raise UserError(f"no plan at {path}") from None
        except DamagedError as error:
            raise UserError(f"{path} is no depthcut plan ({error.why})") from None
        except KeyError as error:
            raise UserError(f"{path} is no depthcut plan ({error!r})") from None
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """The inverse of :meth:`to_dict`; what a person wrote by hand is checked.

        Raises:
            UserError: for a field of another kind, spans that are no cut of such a model, or a cut of all layers.
            KeyError: for a missing field.
        """
        if not isinstance(data, dict):
            raise UserError(f"a depthcut plan is a JSON object, got {json.dumps(data)[:40]}")
        fields: dict[str, Any] = data
        if fields["format"] not in (OLDER, FORMAT):
            raise UserError(f"this plan has format {fields['format']!r}; this version reads format {FORMAT}")
        unit, depth, model = fields.get("unit", "layer"), fields["depth"], fields.get("model", "")
        if unit not in get_args(Unit):
            raise UserError(f"this plan drops units called {unit!r}; there are: {', '.join(get_args(Unit))}")
        if type(depth) is not int or not 1 <= depth <= DEEPEST:
            wanted = f"the model's number of layers, a whole number from 1 to {DEEPEST}"
            raise UserError(f"depth must be {wanted}, got {depth!r:.40}")
        if not isinstance(model, str):
            raise UserError(f"model must be a digest, or empty for any model of this depth, got {model!r}")
        return cls(depth, spanned(fields["drop"], depth), unit, model, fields.get("notes", {}))


def spanned(drop: Any, depth: int) -> tuple[int, ...]:
    """The layers in half-open spans, which may come in any order.

    Raises:
        UserError: for a span that is none, is reversed or empty, leaves a model of ``depth`` layers, or meets another.
    """
    if not isinstance(drop, list):
        raise UserError(f"drop must be a list of spans [start, stop), got {drop!r}")
    checked = sorted(_span(each, depth) for each in drop)
    for (a, b), (c, d) in pairwise(checked):
        if c < b:
            raise UserError(f"spans [{a}, {b}) and [{c}, {d}) overlap")
    return tuple(layer for start, stop in checked for layer in range(start, stop))


def _span(span: Any, depth: int) -> tuple[int, int]:
    """Check one span by itself."""
    if not isinstance(span, list) or [type(end) for end in span] != [int, int]:
        raise UserError(f"span {json.dumps(span)} must be [start, stop), two whole numbers")
    start, stop = span
    if start >= stop:
        kind = "empty" if start == stop else "reversed"
        raise UserError(f"span [{start}, {stop}) is {kind}; the model has layers 0-{depth - 1}, and stop itself stays")
    if start < 0 or stop > depth:
        raise UserError(f"span [{start}, {stop}) leaves the model, which has layers 0-{depth - 1}")
    return start, stop


def spans(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Join sorted layer numbers into half-open spans: (3, 4, 5, 9) becomes [(3, 6), (9, 10)]."""
    joined: list[tuple[int, int]] = []
    for layer in layers:
        if joined and joined[-1][1] == layer:
            joined[-1] = (joined[-1][0], layer + 1)
        else:
            joined.append((layer, layer + 1))
    return joined
