"""Checks of the tokenizer against the model and the questions."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.data.text.tokens import Tokens, separator_id
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from depthcut.eval import Eval
    from depthcut.metric import Metric
    from depthcut.study.run import Run


def check_questions(metric: "Metric", evaluations: "Iterable[Eval]", cache: Path) -> None:
    """Refuse to evaluate questions that also choose the layers.

    Raises:
        UserError: naming the option that separates them.
    """
    from depthcut.data import questions
    from depthcut.eval.harness import Harness
    from depthcut.metric.task import Task

    if not isinstance(metric, Task):
        return
    for task in metric.tasks:
        there = len(questions.load_questions(task, cache))
        for each in evaluations:
            if (
                isinstance(each, Harness)
                and task in each.tasks
                and min(each.limit or there, there) > there - metric.items
            ):
                both = f"eval would measure questions of {task} that metric=task uses to choose the layers"
                raise UserError(f"{both}: set eval.harness.limit to {there - metric.items} or less, or metric.tasks")


def check_separator(run: "Run", model: "PreTrainedModel") -> None:
    """Refuse a separator, or a token that the tokenizer puts before a text, that has no row in the embedding.

    Raises:
        UserError: naming the token.
    """
    tokenizer, separator = run.tokenizer, run.separator
    rows = embedding_rows(model)
    for number in (separator_id(tokenizer, separator), *tokenizer("")["input_ids"]):
        if number >= rows:
            word = tokenizer.convert_ids_to_tokens(number)
            mend = "name another with model.separator, or resize the embedding"
            raise UserError(f"token {number} ({word}) has no row in an embedding of {rows}; {mend}")


def check_tokens(run: "Run", parts: Mapping[str, Tokens]) -> None:
    """Refuse texts with tokens that have no row in the embedding; texts are read only if the tokenizer has such tokens.

    Raises:
        UserError: naming the text and the token.
    """
    tokenizer, rows = run.tokenizer, embedding_rows(run.checkpoint.bare)
    if len(tokenizer) <= rows:
        return
    for part, text in parts.items():
        if (number := int(text.ids.max())) >= rows:
            word = tokenizer.convert_ids_to_tokens(number)
            where = f"data.{part}: token {number} ({word})"
            raise UserError(f"{where} has no row in an embedding of {rows}; resize the embedding to {len(tokenizer)}")


def embedding_rows(model: "PreTrainedModel") -> int:
    """Return the number of rows of the input embedding."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]
