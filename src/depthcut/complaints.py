"""Other libraries' complaints about a config, in one line each: what was wanted, what was got, the choices."""

import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from depthcut.runtime import disk
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import quoted

NUMBERS = {
    **dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), ""),
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
}
WORDS = {**NUMBERS, "string_type": "text", "bool_type": "true or false", "list_type": "a list"}


def of_pydantic(path: str, cls: type[Any], error: ValidationError) -> str:
    """The first complaint of a method's constructor, e.g. ``prune.frac must be in [0, 1), got 1.5``."""
    first = error.errors()[0]
    ways = [each for each in error.errors() if each["loc"][:1] == first["loc"][:1] and each["input"] == first["input"]]
    return of_union(path, ways) if len(ways) > 1 else of_one(path, cls, first)


def of_union(path: str, ways: Sequence[ErrorDetails]) -> str:
    """A value that none of several types would have, with one complaint from each."""
    wanted = " or ".join(dict.fromkeys(way(each) for each in ways))
    return f"{path}.{ways[0]['loc'][0]} must be {wanted}, got {ways[0]['input']!r}"


def of_one(path: str, cls: type[Any], first: ErrorDetails) -> str:
    """One complaint."""
    name = str(first["loc"][0]) if first["loc"] else ""
    key = ".".join(part for part in (path, *(str(part) for part in first["loc"])) if part)
    fields = cls.__pydantic_fields__  # pyright: ignore[reportAttributeAccessIssue]
    kind = first["type"]
    if kind == "value_error":
        reason = first["msg"].removeprefix("Value error, ")
        return f"{key} {reason}" if first["loc"] else reason
    if kind == "unexpected_keyword_argument":
        return f"{key}: no such key. {choices(name, fields)}"
    if kind == "missing":
        return f"{key} must be given"
    if kind in NUMBERS:
        wanted = f"{NUMBERS[kind]}{interval(fields[name].metadata)}".strip()
        return f"{key} must be {wanted}, got {first['input']!r}"
    if kind == "string_pattern_mismatch":
        return f"{key} must be letters, digits, '.', '_' and '-', at most 80, got {first['input']!r}"
    if kind == "literal_error":
        return f"{key} must be one of {first.get('ctx', {})['expected'].replace(chr(39), '')}, got {first['input']!r}"
    if kind in WORDS:
        return f"{key} must be {WORDS[kind]}, got {first['input']!r}"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"


def way(one: ErrorDetails) -> str:
    """What one of several types wanted: ``a whole number``, ``at least 0``, ``auto, none or all``."""
    told = one.get("ctx", {})
    if one["type"] == "literal_error":
        return told["expected"].replace("'", "")
    bounds = [f"{word} {told[name]}" for name, word in (("ge", "at least"), ("gt", "above")) if name in told]
    return bounds[0] if bounds else WORDS.get(one["type"], one["msg"])


def interval(metadata: Iterable[Any]) -> str:
    """`` in [0, 1)``, `` above 0`` or the like out of a field's bounds; empty where there is none."""
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
            return f" at least {bounds['ge']}"
        case 1, _:
            return f" above {bounds['gt']}"
        case _:
            return f" in {low}, {high}"


def choices(wrong: str, right: Iterable[str]) -> str:
    """``Did you mean x? There are: x, y, z``."""
    names = sorted(str(name) for name in right if name != "_target_")
    close = get_close_matches(wrong, names, n=1)
    return (f"Did you mean {close[0]}? " if close else "") + f"There are: {', '.join(names) or 'none'}"


def of_omegaconf(error: OmegaConfBaseException) -> str:
    """A value that is missing, or an interpolation that leads nowhere."""
    key = error.full_key or "config"
    missing = re.search(
        r"Missing mandatory value: ([\w.]+)|value '([\w.]+)' is missing|'([\w.]+)' is missing", str(error)
    )
    if missing:
        key = max(key, *(name for name in missing.groups() if name), key=len)
        return f"{key} must be given: {key}=..."
    return f"{key}: {str(error).splitlines()[0]}"


def of_hydra(error: Exception) -> str:
    """A complaint of Hydra's composition or of its override grammar."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override), text.splitlines()[0])
    missing = re.search(r"Could not (?:find|load) '([\w./-]+)/([^'/]+)'", text)
    if missing:
        return missing_option(missing[1], missing[2], text)
    unknown = re.search(r"Could not override '([^'@]+)'", text)
    if unknown:
        return missing_key(unknown[1], error.__cause__)
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous:
        return f"{ambiguous[1]}: several values make a sweep, which needs -m (a list is written [a,b])"
    return " ".join(line.strip() for line in text.splitlines()[:2])


def unreadable(override: str, why: str) -> str:
    """An override that Hydra cannot parse, and what to type in the shell instead."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override}: {why}. Write key=value"
    typed = shlex.quote(f'{key}="{value}"')
    return f"{override}: {why}. A list is [a,b]. To give it as text, type the quotes too: {typed}"


def missing_option(group: str, word: str, text: str) -> str:
    """``model=lama2_7b: no such model. Did you mean llama2_7b? There are: ...``."""
    conf = re.search(r"provider=main, path=file://(\S+)", text)
    options = [path.stem for path in (Path(conf[1]) / group).glob("*.yaml")] if conf else []
    return f"{group}={word}: no such {group.rpartition('/')[2]}. {choices(word, options)}"


def missing_key(path: str, cause: BaseException | None) -> str:
    """``prune.fraq: no such key. Did you mean frac? There are: ...``."""
    parent = getattr(cause, "parent_node", None)
    keys = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    return f"{path}: no such key. {choices(path.rpartition('.')[2], keys)}" if keys else f"{path}: no such key"


MULTIRUN = {"-m", "--multirun"}
STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends the process. Any other BaseException is a fault: Rust's panics are none of Exception's kind."""
faults: list[BaseException] = []


@contextmanager
def noted() -> Generator[None]:
    """Put an exception aside for :func:`guard`: the other points of a sweep go on, and Hydra adds no words."""
    try:
        yield
    except STOPS:
        raise
    except BaseException as error:
        faults.append(error)


@contextmanager
def suppressed() -> Generator[None]:
    """Leave a fault to each point that it is of: it meets the same one, and fails with it."""
    try:
        yield
    except STOPS:
        raise
    except BaseException:
        pass


def guard(main: Callable[[], Any]) -> int:
    """Run ``main``; a user's mistake becomes one line and status 2, anything else keeps its traceback and status 1."""
    sys.argv[1:] = sorted(map(quoted, sys.argv[1:]), key=lambda word: word not in MULTIRUN)  # argparse wants it first
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would have printed in several lines
    try:
        with noted():
            refuse_lost_folder()
            refuse_launcher_without_multirun(sys.argv[1:])
            main()
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C again: no traceback of what is being closed
        print(f"stopped: {stop or 'give the same command again to resume'}", file=sys.stderr)
        return 130
    return max((of(error) for error in faults), default=0)


def of(error: BaseException) -> int:
    """Tell of one fault; its exit status."""
    line = expected(error)
    if line is not None:
        return tell(line, getattr(error, "status", 2))
    traceback.print_exception(error)
    return 1


def line(error: BaseException) -> str:
    """Any fault in one line."""
    return expected(error) or f"{type(error).__name__}: {error}"


def expected(error: BaseException) -> str | None:
    """A user's mistake, or a disk that refuses, in one line; None for a fault that needs its traceback."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return of_hydra(error)
    return str(error) if isinstance(error, UserError) else disk.explain(error)


def tell(line: str, status: int = 2) -> int:
    """Print a complaint as one line on stderr."""
    print("error: " + " ".join(line.split()), file=sys.stderr)
    return status


def refuse_lost_folder() -> None:
    """Refuse a current folder that was deleted: no path can be read from there.

    Raises:
        UserError: in that case.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted; change to one that exists") from None


def refuse_launcher_without_multirun(arguments: list[str]) -> None:
    """Hydra ignores a launcher without -m, silently.

    Raises:
        UserError: in that case.
    """
    launcher = [each for each in arguments if each.startswith("hydra/launcher=")]
    if launcher and not MULTIRUN & set(arguments):
        raise UserError(f"{launcher[0]} has an effect with -m only")
