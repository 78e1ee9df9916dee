"""Per-layer entries of a config, rewritten for a model of other layers.

Configs describe layers in four ways: a list with one entry per layer, a list of layer numbers, a mapping from layer
numbers, and "the first k". No config says which kind a list is; if both readings are possible, the caller tries the
first and then the second.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

# Keys that mean "the first k layers"; a cut among those reduces k.
FIRST_K_KEYS = ("max_window_layers", "first_k_dense_replace")
# Keys of lists that are repeated until every layer has an entry.
REPEATED = ("block_types",)
# Keys of lists of layer numbers.
NUMBERED = re.compile(r"(^|_)(layers?|blocks?)(_|$)|(^|_)(idxs?|ids|ind(ex|ic)es)$")


def rearrange_lists(text: Any, whole: int, order: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rewrite the per-layer entries of a text config, in each reading that its lists allow.

    Args:
        text: the text config of a model of ``whole`` layers.
        whole: number of its layers.
        order: for each layer of the new model, its index in the original.

    Yields:
        The keys that change, with their values: once, or twice if some list has two readings.
    """
    first: dict[str, Any] = {"num_hidden_layers": len(order)}
    doubtful: dict[str, Any] = {}
    for key, value in vars(text).items():
        if isinstance(value, list) and "token" not in key:
            readings = list(list_readings(key, value, whole, order))
            first |= {key: readings[0]} if readings else {}
            doubtful |= {key: readings[1]} if len(readings) > 1 else {}
        elif key in FIRST_K_KEYS and isinstance(value, int):
            kept = [*takewhile(lambda i, end=value: i < end, order)]
            first[key] = len(kept) + max(0, value - whole)
    if getattr(text, "is_heterogeneous", False):
        overrides = {int(number): each for number, each in text.to_dict()["per_layer_config"].items()}
        first["per_layer_config"] = {new: overrides[old] for new, old in enumerate(order) if old in overrides}
    yield first
    if doubtful:
        yield first | doubtful


def list_readings(key: str, value: list[Any], whole: int, order: Sequence[int]) -> Iterator[list[Any]]:
    """Yield one list, rewritten for each possible reading, the likelier one first."""
    if key in REPEATED and value:
        yield [value[i % len(value)] for i in order]
        return
    if is_numbered(key, value, whole):
        yield [new for new, old in enumerate(order) if old in value]
    if len(value) == whole:
        yield [value[i] for i in order]


def is_numbered(key: str, value: list[Any], whole: int) -> bool:
    """Return whether a list can hold layer numbers: by its key; ascending, unique, each a layer of the model."""
    numbers = all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < whole for each in value)
    return numbers and bool(value) and value == sorted(set(value)) and NUMBERED.search(key) is not None
