"""Numbers of one stage that was measured in several settings, under names that distinguish the settings.

The plain name, such as ``capitals/acc``, belongs to the evaluation in the record's config. In the same settings, a
smaller sample never takes it from a larger one. The names of the others state the difference:
``capitals[limit=20]/acc``.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from depthcut.runtime import store

Value = str | int | float | bool | list[Any] | dict[str, Any] | None


@dataclass(frozen=True)
class Measured:
    """One evaluation of one stage.

    Attributes:
        part: key of the evaluation under ``eval``, such as ``harness``.
        settings: the options that its numbers depend on.
        sample: the options that bound the sample size, such as ``limit``; None means all.
        numbers: the numbers, by plain names.
    """

    part: str
    settings: dict[str, Value]
    sample: dict[str, Value]
    numbers: dict[str, float]

    @cached_property
    def kind(self) -> str:
        """Identity of the measurement, regardless of the sample size."""
        return json.dumps([self.part, self.settings], sort_keys=True)

    def size(self, name: str) -> float:
        """Return the sample size of a number; without a count, as in earlier versions, the bound on it."""
        items = self.numbers.get(f"{subject(name)}/items")
        bounds = [bound for bound in self.sample.values() if isinstance(bound, int)]
        return items if items is not None else min(bounds, default=math.inf)

    def differences(self, other: "Measured") -> str:
        """Return the options that differ from another evaluation, in brackets; empty if none does."""
        mine, theirs = ({**each.settings, **each.sample} for each in (self, other))
        keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
        return f"[{','.join(f'{key}={short_value(mine.get(key))}' for key in keys)}]" if keys else ""


Stage = dict[str, Measured]
"""The evaluations of a stage by their digests, in the order of their requests."""


def short_value(value: Value) -> str:
    """Return a value as part of a name; a value that is not a plain word is replaced by its digest."""
    text = "null" if value is None else str(value)
    return text if re.fullmatch(r"[\w.+-]{1,40}", text) else store.content_digest(value)[:8]


def subject(name: str) -> str:
    """Return the first part of a name: the task or the text."""
    return name.partition("/")[0]


def rivals(found: Stage) -> dict[str, Stage]:
    """Return for each plain name the evaluations of its subject, which compete for the name."""
    subjects: dict[str, Stage] = {}
    for digest, each in found.items():
        for of in {subject(name) for name in each.numbers}:
            subjects.setdefault(of, {})[digest] = each
    return {name: subjects[subject(name)] for each in found.values() for name in each.numbers}


def plain_owner(found: Stage, name: str) -> str:
    """Return the digest of the evaluation that owns the plain ``name``, even if it did not report that number.

    A non-finite loss has other names than a finite one, so the evaluations that count a subject's items share all its
    names.
    """
    last = [each for each in found.values() if name in each.numbers][-1]
    items = f"{subject(name)}/items"
    key = items if items in last.numbers else name
    there = [
        digest
        for digest, each in found.items()
        if name in each.numbers or (key in each.numbers and each.part == last.part)
    ]
    alike = [digest for digest in there if found[digest].kind == found[there[-1]].kind]
    newest = [digest for digest in alike if found[digest].sample == found[alike[-1]].sample][-1]
    larger = [digest for digest in alike if found[digest].sample != found[newest].sample]
    return max([*larger, newest], key=lambda digest: (found[digest].size(name), there.index(digest)))


def shown_marks(found: Stage, name: str) -> dict[str, str]:
    """Return the mark in each evaluation's shown ``name``; of equal settings, only the newest is shown."""
    owner = plain_owner(found, name)
    marks = {each.differences(found[owner]): digest for digest, each in found.items() if name in each.numbers}
    return {digest: mark for mark, digest in (marks | {"": owner}).items() if name in found[digest].numbers}


def named_numbers(found: Stage) -> dict[str, float]:
    """Return all numbers of a stage, under names that distinguish settings."""
    flat: dict[str, float] = {}
    for name, those in rivals(found).items():
        of, _, rest = name.partition("/")
        for digest, mark in shown_marks(those, name).items():
            flat[f"{of}{mark}/{rest}"] = found[digest].numbers[name]
    return flat


def current_evaluations(found: Stage) -> Stage:
    """Return the evaluations that are still shown; newer content or versions replace the others."""
    used = {digest for name, those in rivals(found).items() for digest in shown_marks(those, name)}
    return {digest: each for digest, each in found.items() if digest in used or not each.numbers}


def describe_kept(found: Stage, asked: Iterable[str]) -> list[str]:
    """Return a line for each subject whose plain names stay with a larger sample than ``asked`` for."""
    said: dict[str, None] = {}
    for digest in asked:
        for name in found[digest].numbers:
            owner = found[plain_owner(found, name)]
            if owner is not found[digest]:
                mark = found[digest].differences(owner)
                now = f"{subject(name)}{mark}, on {count_items(found[digest].size(name))}, is shown too"
                said[f"{subject(name)} keeps its value on {count_items(owner.size(name))}. {now}"] = None
    return list(said)


def count_items(items: float) -> str:
    """Return a number of items in words: ``100 items``, or ``all items``."""
    return "all items" if math.isinf(items) else f"{items:,.0f} items"


def measured_to_dict(found: Stage) -> dict[str, Any]:
    """Return the evaluations in the format of a record."""
    return {digest: asdict(each) for digest, each in found.items()}


def measured_from_record(record: dict[str, Any] | None, stage: str) -> Stage:
    """Return the evaluations of a stage in a record; records of earlier versions have none."""
    stages = (record or {}).get("measured")
    found = stages.get(stage) if isinstance(stages, dict) else None
    return {str(digest): Measured(**each) for digest, each in found.items()} if isinstance(found, dict) else {}
