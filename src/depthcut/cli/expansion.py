"""Expand a sweep into its points: count them first, and give each point only the options that its choices have."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig

from depthcut.cli.composition import Loader
from depthcut.cli.refusals import UnknownKeyError
from depthcut.runtime.errors import UserError

MOST_POINTS = 100_000
Words = tuple[str, ...]
"""The overrides of one point."""


def expand_sweep(loader: Loader, master: DictConfig, overrides: Sequence[Override]) -> tuple[list[Words], list[str]]:
    """Compose every point of a sweep.

    An option that only some of the swept choices have is left out where the choice lacks it.

    Args:
        loader: keeps the composed configs for the launcher.
        master: the config of the launcher.
        overrides: of the command line, without Hydra's own.

    Returns:
        The overrides of each point, no two the same, and a line for each option that was left out somewhere.

    Raises:
        UserError: for more than 100,000 points, a point that cannot be composed, or an option that no choice has.
    """
    count_points(overrides)
    groups = [each.key_or_group for each in overrides if each.is_sweep_override() and loader.is_group(each)]
    known: dict[Words, dict[str, UnknownKeyError]] = {}
    expanded: list[SweepPoint] = []
    [jobs] = BasicSweeper.split_arguments(list(overrides), None)
    for words in jobs:
        choices = {group: word.partition("=")[2] for word in words if (group := override_key(word)) in groups}
        lacking = known.setdefault(tuple(choices.values()), {})
        kept = compose_point(loader, master, words, lacking if groups else None)
        expanded.append(SweepPoint(kept, choices, dict(lacking)))
    return list(dict.fromkeys(job.words for job in expanded)), explain_omissions(expanded)


@dataclass(frozen=True)
class SweepPoint:
    """A point of a sweep.

    Attributes:
        words: its overrides.
        choices: its choice of each swept group.
        lacking: options of the command line that it does not have.
    """

    words: Words
    choices: dict[str, str]
    lacking: dict[str, UnknownKeyError]


def compose_point(
    loader: Loader, master: DictConfig, words: Sequence[str], lacking: dict[str, UnknownKeyError] | None
) -> Words:
    """Compose a point; return the overrides that it has, and add the others to ``lacking`` where a group is swept."""
    while True:
        kept = tuple(word for word in words if not lacking or override_key(word) not in lacking)
        try:
            loader.composed[kept] = loader.load_sweep_config(master, list(kept))
        except UnknownKeyError as error:
            if lacking is None:
                raise
            lacking[error.key] = error
        else:
            return kept


def explain_omissions(jobs: Sequence[SweepPoint]) -> list[str]:
    """Return a line for each option that some of the points lack.

    Raises:
        UserError: for one that all of them lack.
    """
    lines: list[str] = []
    for key in dict.fromkeys(key for job in jobs for key in job.lacking):
        without = [job for job in jobs if key in job.lacking]
        if len(without) == len(jobs):
            raise max((job.lacking[key] for job in jobs), key=lambda error: len(str(error)))
        lines.append(f"{key} is not an option of {describe_omission(key, without, jobs)} and is ignored there")
    return lines


def describe_omission(key: str, without: Sequence[SweepPoint], jobs: Sequence[SweepPoint]) -> str:
    """Return the choice that the points ``without`` an option have in common, such as ``heal=none``."""
    having = [job for job in jobs if key not in job.lacking]
    for group in sorted(jobs[0].choices, key=lambda group: group != key.partition(".")[0]):
        lacking = dict.fromkeys(job.choices[group] for job in without)
        if not lacking.keys() & {job.choices[group] for job in having}:
            return f"{group}={','.join(lacking)}"
    return f"{len(without)} of {len(jobs)} points"


def override_key(word: str) -> str:
    """Return the key of an override."""
    return word.partition("=")[0]


def count_points(overrides: Iterable[Override]) -> int:
    """Count the points of a sweep without expanding it.

    Raises:
        UserError: for a range without an end or a value, or more than 100,000 points.
    """
    points = 1
    for each in overrides:
        if each.is_sweep_override():
            points *= count_values(each)
    if points > MOST_POINTS:
        raise UserError(
            f"this sweep has {points:,} points, at most {MOST_POINTS:,} are allowed. Narrow a range, or split the study"
        )
    return points


def count_values(override: Override) -> int:
    """Count the values of one override.

    Raises:
        UserError: if it has none, or no end.
    """
    value = override.value()
    if isinstance(value, RangeSweep):
        start, stop, step = (Decimal(str(each)) for each in (value.start, value.stop, value.step))
        if not all(each.is_finite() for each in (start, stop, step)) or not step:
            raise UserError(f"{override.input_line}: a range needs finite numbers and a nonzero step")
        count = max(0, math.ceil((stop - start) / step))
    elif override.is_discrete_sweep():
        count = sum(1 for _ in override.sweep_iterator())
    else:
        raise UserError(f"{override.input_line}: expected values to sweep over: a,b,c or range(start,stop,step)")
    if not count:
        raise UserError(f"{override.input_line}: expected at least one value, got none")
    return count
