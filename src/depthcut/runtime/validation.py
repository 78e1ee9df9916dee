"""Pydantic's errors about the options of a method, in one line: expected, given, and the choices."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

NUMBER_TYPES = {
    **dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), ""),
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
}
NAME = "letters, digits, '.', '_' and '-', at most 80"
WIDEST = 100
"""Maximum number of characters of a value in a message."""
TYPE_NAMES = {
    **NUMBER_TYPES,
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
}


def format_value(value: Any) -> str:
    """Return the repr of ``value``, truncated if long."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 20]}... ({len(text):,} characters)"


def describe_validation_error(path: str, cls: type[Any], error: ValidationError) -> str:
    """Return the first error of a method's constructor, such as ``prune.frac must be in [0, 1), got 1.5``."""
    first = error.errors()[0]
    ways = [each for each in error.errors() if each["loc"][:1] == first["loc"][:1] and each["input"] == first["input"]]
    return describe_union_error(path, ways) if len(ways) > 1 else describe_field_error(path, cls, first)


def describe_union_error(path: str, ways: Sequence[ErrorDetails]) -> str:
    """Describe a value that matches none of several types, given one error per type."""
    wanted = " or ".join(dict.fromkeys(expected_form(each) for each in ways))
    shared = [str(parts[0]) for parts in zip(*(each["loc"] for each in ways), strict=False) if len({*parts}) == 1]
    return f"{'.'.join([path, *shared]).lstrip('.')} must be {wanted}, got {format_value(ways[0]['input'])}"


def describe_field_error(path: str, cls: type[Any], first: ErrorDetails) -> str:
    """Describe one error."""
    name = str(first["loc"][0]) if first["loc"] else ""
    key = ".".join(part for part in (path, *(str(part) for part in first["loc"])) if part)
    fields = cls.__pydantic_fields__  # pyright: ignore[reportAttributeAccessIssue]
    kind = first["type"]
    if kind == "value_error":
        reason = first["msg"].removeprefix("Value error, ")
        return f"{key} {reason}" if first["loc"] else reason
    if kind == "unexpected_keyword_argument":
        return describe_missing_key(key, fields, f"{cls.__module__}.{cls.__name__}")
    if kind == "missing":
        return f"{key} is required"
    if kind in NUMBER_TYPES:
        wanted = f"{NUMBER_TYPES[kind]}{describe_interval(fields[name].metadata)}".strip().removeprefix("of ")
        wanted = wanted or expected_form(first)
        return f"{key} must be {wanted}, got {format_value(first['input'])}"
    if kind == "string_pattern_mismatch":
        shown = clip_text(key).removesuffix(".[key]")
        return f"{shown} must be {describe_pattern(first)}, got {format_value(first['input'])}"
    if kind == "literal_error":
        allowed = first.get("ctx", {})["expected"].replace("'", "")
        return f"{key} must be one of {allowed}, got {format_value(first['input'])}"
    if kind in TYPE_NAMES:
        return f"{key} must be {TYPE_NAMES[kind]}, got {format_value(first['input'])}"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {format_value(first['input'])}"


def describe_pattern(one: ErrorDetails) -> str:
    """Describe the text that a pattern accepts."""
    expected = one.get("ctx", {}).get("pattern", "")
    if "\\r" in expected:
        return "one line of text"
    return "a word of letters, digits and '-'" if "\\w" in expected else NAME


def expected_form(one: ErrorDetails) -> str:
    """Return the form that one of several types expects: ``a whole number``, ``at least 0``, ``auto, none or all``."""
    context = one.get("ctx", {})
    if one["type"] == "literal_error":
        return context["expected"].replace("'", "")
    if one["type"] == "string_pattern_mismatch":
        return describe_pattern(one)
    bounds = [f"{word} {context[name]}" for name, word in (("ge", "at least"), ("gt", "above")) if name in context]
    return bounds[0] if bounds else TYPE_NAMES.get(one["type"], one["msg"])


def describe_interval(metadata: Iterable[Any]) -> str:
    """Return a field's bounds such as `` in [0, 1)`` or `` above 0``; empty if it has none."""
    bounds: dict[str, Any] = {}
    for each in metadata:
        bounds |= {
            name: getattr(each, name) for name in ("ge", "gt", "le", "lt") if getattr(each, name, None) is not None
        }
    low = f"[{bounds['ge']}" if "ge" in bounds else f"({bounds.get('gt')}"
    high = f"{bounds['le']}]" if "le" in bounds else f"{bounds.get('lt')})"
    match len(bounds), "ge" in bounds:
        case 0, _:
            return ""
        case 1, True:
            return f" of at least {bounds['ge']}"
        case 1, _:
            return f" above {bounds['gt']}"
        case _:
            return f" in {low}, {high}"


def suggest_choices(wrong: str, right: Iterable[str]) -> str:
    """Return ``Did you mean x? There are: x, y, z``."""
    names = sorted(str(name) for name in right if name != "_target_")
    close = get_close_matches(wrong, names, n=1)
    return (f"Did you mean {close[0]}? " if close else "") + f"Available: {', '.join(names) or 'none'}"


def describe_missing_key(path: str, keys: Iterable[Any], target: Any = None) -> str:
    """Return ``prune.fraq: no such key. Did you mean frac? There are: ...``, or that the method has no options.

    Args:
        path: the wrong key.
        keys: the valid keys next to it.
        target: the ``_target_`` of the method that they belong to.
    """
    group, _, name = path.rpartition(".")
    names = [str(key) for key in keys if key != "_target_"]
    if not names and isinstance(target, str):
        return f"{path}: no such key. {group}={target.split('.')[-2:][0]} has no options"
    return f"{path}: no such key. {suggest_choices(name, names)}"


def clip_text(text: str) -> str:
    """Return ``text``, truncated if long."""
    return text if len(text) <= 2 * WIDEST else f"{text[:WIDEST]}... ({len(text):,} characters)"
