"""Pruning plans: the 0-based layers that are dropped and kept, in words and as JSON."""

import json
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from depthcut.cut.spans import layer_spans, parse_spans
from depthcut.runtime import documents, store, validation
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError

FORMAT = 2
OLDER_FORMAT = 1  # has no unit; drops whole layers
KEYS = ("format", "depth", "unit", "drop", "words", "model", "notes")
DEEPEST = 10_000  # layers; a larger depth is a mistake and would exhaust memory
EXAMPLE = 'For example, {"drop": [3, 4, [6, 9], "11-18"]} drops layers 3-4, 6-8 and 11-18'

Unit = Literal["layer", "attention", "mlp"]
UNIT_NOUNS: dict[Unit, str] = {"layer": "layers", "attention": "attentions", "mlp": "MLPs"}


@dataclass(frozen=True)
class Plan:
    """A cut through a model of ``depth`` layers.

    Attributes:
        depth: number of layers of the whole model, L.
        drop: the dropped layers, sorted, each in [0, L).
        unit: the part of these layers that is dropped: the whole layer, or only its attention or MLP; then the layer
            stays.
        model: digest of the checkpoint that the plan was made for; empty if it fits any model of this depth.
        notes: how the plan was chosen (pruner, metric, score of the cut), for reports only.

    Raises:
        UserError: if a layer is outside the model or named twice, or the plan keeps no layer.
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
            raise UserError(f"plan contains a layer twice: {list(self.drop)}")
        if len(self.drop) >= self.depth:
            raise UserError(f"plan keeps 0 of {self.depth} layers; at least one must stay")
        object.__setattr__(self, "drop", tuple(sorted(self.drop)))

    @property
    def keep(self) -> tuple[int, ...]:
        """The kept layers in order, including those that lose a sublayer: new layer i is old layer ``keep[i]``."""
        gone = set(self.drop if self.unit == "layer" else ())
        return tuple(i for i in range(self.depth) if i not in gone)

    @property
    def fraction(self) -> float:
        """Fraction of the layers, or of their attentions or MLPs, that is dropped: n / L."""
        return len(self.drop) / self.depth

    @property
    def words(self) -> str:
        """The plan in words, for example ``drops layers 21-28 of 0-31, keeps 24``."""
        if not self.drop:
            return f"drops nothing, keeps all {self.depth} layers"
        gone = ", ".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in layer_spans(self.drop))
        noun = "layer" if len(self.drop) == 1 else "layers"
        part = "" if self.unit == "layer" else f"the {'MLP' if self.unit == 'mlp' else self.unit} of "
        return f"drops {part}{noun} {gone} of 0-{self.depth - 1}, keeps {self.depth - len(self.drop)}"

    @property
    def surest(self) -> str:
        """Starts that win most often in a bootstrap, for example ``11 in 83%, 12 in 17%``; empty without one."""
        wins: dict[str, float] = self.notes.get("wins", {})
        return ", ".join(f"{start} in {share:.0%}" for start, share in list(wins.items())[:3] if share > 0.005)

    def write(self, path: Path) -> None:
        """Write the plan as JSON; ``drop`` holds half-open spans."""
        store.write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with ``drop`` as half-open spans: ``[[start, stop), ...]``."""
        drop = [list(span) for span in layer_spans(self.drop)]
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
    def read(cls, path: Path, depth: int | None = None) -> "Plan":
        """Read a plan written by :meth:`write` or by hand.

        Args:
            path: the file.
            depth: number of layers of the model, for a file without it.

        Raises:
            UserError: if the file is missing, is not a plan, or is not a possible cut; the message names the file and
                the key.
        """
        try:
            return cls.from_dict(documents.read_json(path), depth)
        except FileNotFoundError:
            raise UserError(f"no plan at {path}") from None
        except DamagedError as error:
            raise UserError(f"{path} is not a JSON plan ({error.why}). {EXAMPLE}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: Any, depth: int | None = None) -> "Plan":
        """Return the plan in a result of :meth:`to_dict` or in handwritten JSON; only ``drop`` is required.

        Raises:
            UserError: if a key is missing or unknown, a value has the wrong type, or the spans are not a possible cut
                or drop all layers.
        """
        _check_keys(data)
        fields: dict[str, Any] = {"depth": depth, "format": FORMAT, "unit": "layer", "model": "", "notes": {}} | data
        if fields["format"] not in (OLDER_FORMAT, FORMAT):
            raise UserError(f"this plan has format {fields['format']!r}; this version reads format {FORMAT}")
        if "drop" not in fields:
            raise UserError(f'the key "drop" is missing. {EXAMPLE}')
        unit, depth, model, notes = fields["unit"], fields["depth"], fields["model"], fields["notes"]
        if unit not in get_args(Unit):
            raise UserError(f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}")
        if "depth" not in data and depth is None:
            raise UserError('the key "depth", the model\'s number of layers, is missing: add it, such as "depth": 32')
        if type(depth) is not int or not 1 <= depth <= DEEPEST:
            wanted = f"a whole number from 1 to {DEEPEST}"
            raise UserError(f"depth must be the model's number of layers, {wanted}, got {reprlib.repr(depth)}")
        if not isinstance(model, str):
            raise UserError(f"model must be a digest, or empty for any model of this depth, got {model!r}")
        _check_notes(notes)
        return cls(depth, parse_spans(fields["drop"], depth), unit, model, notes)


def _check_keys(data: Any) -> None:
    """Refuse anything but a JSON object, and unknown keys, which would be ignored."""
    if not isinstance(data, dict):
        raise UserError(f"expected a plan as a JSON object, got {json.dumps(data)[:40]}. {EXAMPLE}")
    if unknown := data.keys() - KEYS:
        raise UserError(validation.describe_missing_key(validation.clip_text(min(unknown)), KEYS))


def _check_notes(notes: Any) -> None:
    """Refuse notes that could not be displayed or written back."""
    if not isinstance(notes, dict):
        raise UserError(f"notes must be a JSON object, got {reprlib.repr(notes)}; delete the key, it is optional")
    wins = notes.get("wins", {})
    if not isinstance(wins, dict) or not all(type(share) in (int, float) for share in wins.values()):
        raise UserError(f"notes.wins must map layers to shares, got {reprlib.repr(wins)}; delete the key")
