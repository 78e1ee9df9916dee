"""Numbers of one stage that was measured in several settings, under names that tell these apart.

The plain name, such as ``capitals/acc``, belongs to the evaluation that the record's config asks for. A smaller sample
never takes it from a larger one in the same settings. The others state where they differ: ``capitals[limit=20]/acc``.
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
        part: which evaluation, as ``eval`` calls it: ``harness``.
        settings: the options that its numbers depend on.
        sample: the options that bound how much is measured: ``limit``; None is all.
        numbers: by plain names.
    """

    part: str
    settings: dict[str, Value]
    sample: dict[str, Value]
    numbers: dict[str, float]

    @cached_property
    def kind(self) -> str:
        """What it measures, however much of it."""
        return json.dumps([self.part, self.settings], sort_keys=True)

    def size(self, name: str) -> float:
        """Return how many items a number is measured on; by the bound where an earlier version did not count them."""
        items = self.numbers.get(f"{subject(name)}/items")
        bounds = [bound for bound in self.sample.values() if isinstance(bound, int)]
        return items if items is not None else min(bounds, default=math.inf)

    def differences(self, other: "Measured") -> str:
        """Return the options in which it differs from another, in brackets; empty where there is none."""
        mine, theirs = ({**each.settings, **each.sample} for each in (self, other))
        keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
        return f"[{','.join(f'{key}={short_value(mine.get(key))}' for key in keys)}]" if keys else ""


Stage = dict[str, Measured]
"""The evaluations of a stage by their digests, in the order in which they were asked for."""


def short_value(value: Value) -> str:
    """Return a value as a word of a name: what is no plain word is named by its content."""
    text = "null" if value is None else str(value)
    return text if re.fullmatch(r"[\w.+-]{1,40}", text) else store.content_digest(value)[:8]


def subject(name: str) -> str:
    """Return the first part of a name: the task or the text."""
    return name.partition("/")[0]


def rivals(found: Stage) -> dict[str, Stage]:
    """Return for each plain name the evaluations of its subject, which alone decide whose it is."""
    subjects: dict[str, Stage] = {}
    for digest, each in found.items():
        for of in {subject(name) for name in each.numbers}:
            subjects.setdefault(of, {})[digest] = each
    return {name: subjects[subject(name)] for each in found.values() for name in each.numbers}


def plain_owner(found: Stage, name: str) -> str:
    """Return the digest of the evaluation that the plain ``name`` belongs to, whether it gave that number or not.

    A loss that is not finite has other names than one that is, so the evaluations that count a subject's items share
    all its names.
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
    """Return the mark behind which each evaluation's ``name`` is shown; of equal settings the newest alone is."""
    owner = plain_owner(found, name)
    marks = {each.differences(found[owner]): digest for digest, each in found.items() if name in each.numbers}
    return {digest: mark for mark, digest in (marks | {"": owner}).items() if name in found[digest].numbers}


def named_numbers(found: Stage) -> dict[str, float]:
    """Return all numbers of a stage, under names that tell settings apart."""
    flat: dict[str, float] = {}
    for name, those in rivals(found).items():
        of, _, rest = name.partition("/")
        for digest, mark in shown_marks(those, name).items():
            flat[f"{of}{mark}/{rest}"] = found[digest].numbers[name]
    return flat


def current_evaluations(found: Stage) -> Stage:
    """Return the evaluations without those of which nothing is shown: other content or versions took their place."""
    used = {digest for name, those in rivals(found).items() for digest in shown_marks(those, name)}
    return {digest: each for digest, each in found.items() if digest in used or not each.numbers}


def describe_kept(found: Stage, asked: Iterable[str]) -> list[str]:
    """Say in a line for each subject which of the evaluations ``asked`` for left the plain names to larger ones."""
    said: dict[str, None] = {}
    for digest in asked:
        for name in found[digest].numbers:
            owner = found[plain_owner(found, name)]
            if owner is not found[digest]:
                mark = found[digest].differences(owner)
                now = f"{subject(name)}{mark}, on {count_items(found[digest].size(name))}, stands beside it"
                said[f"{subject(name)} was measured on {count_items(owner.size(name))} before; kept. {now}"] = None
    return list(said)


def count_items(items: float) -> str:
    """Return ``100 items``, or ``all items``."""
    return "all items" if math.isinf(items) else f"{items:,.0f} items"


def measured_to_dict(found: Stage) -> dict[str, Any]:
    """Return the evaluations as a record holds them."""
    return {digest: asdict(each) for digest, each in found.items()}


def measured_from_record(record: dict[str, Any] | None, stage: str) -> Stage:
    """Return the evaluations of a stage that a record holds; those of earlier versions hold none."""
    stages = (record or {}).get("measured")
    found = stages.get(stage) if isinstance(stages, dict) else None
    return {str(digest): Measured(**each) for digest, each in found.items()} if isinstance(found, dict) else {}
