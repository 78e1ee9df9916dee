"""Layer spans: their text form and their sets."""

import json
import re
import reprlib
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from depthcut.runtime.errors import UserError


def parse_spans(drop: Any, depth: int) -> tuple[int, ...]:
    """Return the layers named by a list of layers, half-open spans and inclusive ``"first-last"`` spans, in any order.

    Raises:
        UserError: if an entry has another type, is reversed or empty, leaves a model of ``depth`` layers, or overlaps
            another.
    """
    if not isinstance(drop, list):
        raise UserError(f"drop must be a list of spans [start, stop), got {drop!r}")
    checked = sorted(_parse_span(each, depth) for each in drop)
    for (a, b), (c, d) in pairwise(checked):
        if c < b:
            raise UserError(f"spans [{a}, {b}) and [{c}, {d}) overlap")
    return tuple(layer for start, stop in checked for layer in range(start, stop))


def _parse_span(entry: Any, depth: int) -> tuple[int, int]:
    """Check a single entry and return it as a half-open span."""
    words = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", entry) if isinstance(entry, str) else None
    if words:
        entry = [int(words[1]), int(words[2] or words[1]) + 1]
        name = f"span {words[0].strip()}"
    elif type(entry) is int:
        entry, name = [entry, entry + 1], f"layer {entry}"
    elif isinstance(entry, list) and [type(end) for end in entry] == [int, int]:
        name = f"span [{entry[0]}, {entry[1]})"
    else:
        got = reprlib.repr(entry) if isinstance(entry, dict) else json.dumps(entry)[:80]
        raise UserError(f'span {got} must be [start, stop) in whole numbers, "first-last", or a layer')
    start, stop = entry
    if start >= stop:
        kind = "empty" if start == stop else "reversed"
        raise UserError(f"{name} is {kind}; the model has layers 0-{depth - 1}, and stop is exclusive")
    if start < 0 or stop > depth:
        raise UserError(f"{name} is out of range: the model has layers 0-{depth - 1}")
    return start, stop


def layer_spans(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Join sorted layer numbers into half-open spans: (3, 4, 5, 9) becomes [(3, 6), (9, 10)]."""
    joined: list[tuple[int, int]] = []
    for layer in layers:
        if joined and joined[-1][1] == layer:
            joined[-1] = (joined[-1][0], layer + 1)
        else:
            joined.append((layer, layer + 1))
    return joined
