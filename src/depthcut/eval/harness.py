"""Tasks through lm-eval's own evaluator: local question sets, or any of its tasks by name (Gao et al.)."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from depthcut import questions
from depthcut.eval import UNCUT, Cuts, Eval
from depthcut.runtime.errors import UserError
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.lab import Lab

Count = Annotated[int, Field(gt=0)]


@strict
class Harness(Eval):
    """Multiple choice by log-likelihood, and whatever else lm-eval measures.

    Attributes:
        tasks: names; ``mmlu@5`` means five shots. ``capitals``, ``topics`` and what ends with ``_local`` need no hub.
        limit: items a task at most; null takes all.
        batch: requests a forward pass.
    """

    tasks: list[str]
    limit: Annotated[int | None, Field(gt=0)]
    batch: Count
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})
    sample: ClassVar[frozenset[str]] = frozenset({"limit"})

    def __post_init__(self) -> None:
        for task in self.tasks:
            name, _, shots = task.partition("@")
            if not name or ("@" in task and not shots.isdigit()):
                raise UserError(f"eval.tasks: {task!r} is no task; write a name, or name@shots such as mmlu@5")
            if name in questions.NAMES and shots:
                raise UserError(f"eval.tasks: {name} has no examples to show as shots; write {name}")

    def parts(self) -> tuple[Eval, ...]:
        """One part a task."""
        return tuple(dataclasses.replace(self, tasks=[task]) for task in self.tasks)

    @override
    def settings(self, lab: "Lab") -> dict[str, Any]:
        return {"limit": self.limit, "shots": ",".join(task.partition("@")[2] for task in self.tasks) or None}

    def reads(self, lab: "Lab") -> Any:
        """The questions of the local sets, and lm-eval's version for the others."""
        from importlib.metadata import version

        names = [task.partition("@")[0] for task in self.tasks]
        items = {name: questions.identity(name) for name in names if name in questions.NAMES}
        return {"lm_eval": version("lm_eval"), "questions": items, "separator": lab.checkpoint.separator}

    @override
    def check(self) -> None:
        names = [task.partition("@")[0] for task in self.tasks]
        if others := [name for name in names if name not in questions.NAMES]:
            from depthcut import harness

            with harness.quiet():
                for name in others:
                    harness.require(name)

    def prepare(self, lab: "Lab") -> None:
        """Load the tasks: a name that lm-eval does not know, or a hub that is not reached, is found out now."""
        from depthcut import harness

        with harness.quiet():
            for task in self.tasks:
                harness.load(task, lab.cache)

    def __call__(self, model: "nn.Module", lab: "Lab", cuts: Cuts = UNCUT) -> "list[dict[str, float]] | None":
        """Measure each task: ``arc_easy/acc``, ``arc_easy/acc_stderr``, ... None of cuts if a task has them write.

        Raises:
            UserError: as :meth:`prepare`.
        """
        from depthcut import harness

        try:
            return harness.evaluate(model, lab, self.tasks, self.limit, self.batch, cuts)
        except harness.Unshared:
            return None
