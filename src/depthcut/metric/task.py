"""Drop in accuracy, or in the answers' log-likelihood, on questions when a layer is removed (arXiv:2407.16286)."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.data import questions
from depthcut.metric import RemovalMetric
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.metric import Subject
    from depthcut.model.decoder.measurement import Measurement, SequenceBatch


@strict
class Task(RemovalMetric):
    """Share of wrong answers, or mean negative log-likelihood of the right answers in nats.

    An answer's log-likelihood is the sum over its tokens after the question, as in lm-eval's ``acc``. The metric reads
    the last questions of each set and ``eval`` the first; no question may be in both.

    Attributes:
        tasks: local question sets.
        items: questions per set.
        by: ``accuracy`` or ``likelihood``.
    """

    tasks: Annotated[list[str], Field(min_length=1)]
    items: Annotated[int, Field(gt=0)]
    by: Literal["accuracy", "likelihood"]
    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if strangers := [task for task in self.tasks if task not in questions.SET_NAMES]:
            raise UserError(f"metric.tasks: no local set {strangers[0]!r}; available: {', '.join(questions.SET_NAMES)}")

    def reads(self, subject: "Subject") -> Any:
        """Return the digests of the question sets."""
        del subject
        return {task: questions.questions_digest(task) for task in self.tasks}

    def prepare(self, subject: "Subject", unit: Unit) -> None:
        """Fetch the questions.

        Raises:
            UserError: if a set is too small.
        """
        del unit
        for task in self.tasks:
            there = len(questions.load_questions(task, subject.cache))
            if there < self.items:
                raise UserError(f"metric.items must be at most {there} for {task}, got {self.items}")

    def reading(self, subject: "Subject", samples: int | None) -> "Measurement":
        """Return the measurement with one sequence per choice of a question; targets are the tokens of the choice."""
        from depthcut.model.decoder import inputs, layers, measurement

        asked = [item for task in self.tasks for item in questions.load_questions(task, subject.cache)[-self.items :]][
            :samples
        ]
        pairs = [(item["prompt"], f" {choice}") for item in asked for choice in item["choices"]]
        sizes_Q = [len(item["choices"]) for item in asked]
        right_Q = [item["answer"] for item in asked]

        def value(sums_KN: "Tensor", count_N: "Tensor", weight_N: "Tensor") -> "tuple[Tensor, Tensor]":
            del count_N
            return self.value(sums_KN, weight_N, sizes_Q, right_Q)

        longest = inputs.position_count(layers.meta_model(subject.dense.config))
        rows = list(question_batches(subject.tokenizer, pairs, self.batch, longest))
        return measurement.Measurement("task", measurement.loss_measure, False, rows, value)

    def value(
        self, sums_KN: "Tensor", weight_N: "Tensor", sizes_Q: list[int], right_Q: list[int]
    ) -> "tuple[Tensor, Tensor]":
        """Return the value of each sub-network and its standard error over the questions, K each.

        Args:
            sums_KN: negative log-likelihood of each choice; the choices of a question are adjacent.
            weight_N: weight of each choice; a question takes that of its first choice.
            sizes_Q: number of choices of each question.
            right_Q: index of the right choice of each question.
        """
        import torch

        of_questions = sums_KN.split(sizes_Q, dim=1)
        if self.by == "accuracy":
            values = [(sums_KC.argmin(1) != right) for sums_KC, right in zip(of_questions, right_Q, strict=True)]
        else:
            values = [sums_KC[:, right] for sums_KC, right in zip(of_questions, right_Q, strict=True)]
        values_KQ = torch.stack(values, dim=1).double()
        weight_Q = torch.stack([weight_C[0] for weight_C in weight_N.split(sizes_Q)])
        mean_K = (values_KQ * weight_Q).sum(1) / weight_Q.sum()
        return mean_K, values_KQ.std(1, correction=min(1, len(sizes_Q) - 1)) / math.sqrt(len(sizes_Q))


def question_batches(
    tokenizer: Any, pairs: list[tuple[str, str]], size: int, longest: int | None
) -> "Iterator[SequenceBatch]":
    """Yield ``size`` pairs of question and choice at a time, padded on the right; only the choice's tokens are targets.

    A pair of more than ``longest`` tokens keeps its last ones, as in lm-eval.
    """
    import torch

    from depthcut.model.decoder import inputs, measurement

    for first in range(0, len(pairs), size):
        some = pairs[first : first + size]
        ids = [torch.tensor(tokenizer(prompt + choice)["input_ids"]) for prompt, choice in some]
        begins = torch.tensor([len(tokenizer(prompt)["input_ids"]) for prompt, _ in some])
        if longest is not None:
            begins -= torch.tensor([max(len(row) - longest, 0) for row in ids])
            ids = [row[-longest:] for row in ids]
        ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        places_T = torch.arange(ids_BT.shape[1])
        lengths_B = torch.tensor([len(row) for row in ids])
        mask_BT = (places_T < lengths_B[:, None]).long()
        answer_BT = (places_T >= begins[:, None]) & mask_BT.bool()
        targets_BT = ids_BT[:, 1:].masked_fill(~answer_BT[:, 1:], inputs.NO_TARGET)
        yield measurement.SequenceBatch(first, ids_BT, mask_BT, targets_BT)
