"""Tasks through lm-eval's evaluator: local question sets, or any lm-eval task by name (Gao et al.)."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from depthcut.data import questions
from depthcut.eval import FULL_ONLY, Eval, Subnetworks
from depthcut.eval.likelihood import task_files
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.eval import Bench

Count = Annotated[int, Field(gt=0)]


@strict
class Harness(Eval):
    """Multiple choice by log-likelihood, and every other kind of task that lm-eval measures.

    Attributes:
        tasks: task names; ``mmlu@5`` means five shots. ``capitals``, ``topics`` and names that end with ``_local`` need
            no hub. A path such as ``/x/mine.yaml`` is a user-defined task.
        include_path: folder of user-defined tasks, which ``tasks`` can then name; None: lm-eval's tasks only.
        limit: maximum number of items per task; None takes all.
        batch: requests per forward pass.
    """

    tasks: list[str]
    limit: Annotated[int | None, Field(gt=0)]
    include_path: PathText | None
    batch: Count
    # `reads` covers the content of user-defined tasks.
    incidental: ClassVar[frozenset[str]] = frozenset({"include_path", "batch"})
    sample: ClassVar[frozenset[str]] = frozenset({"limit"})

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("eval.tasks is empty; name a task, or remove harness from eval")
        for task in self.tasks:
            name, shots = task_files.split_shots(task)
            if not name or ("@" in name and not task_files.is_task_path(task)):
                raise UserError(f"eval.tasks: {task!r} is not a task; write a name, or name@shots such as mmlu@5")
            if name in questions.SET_NAMES and shots:
                raise UserError(f"eval.tasks: {name} has no examples for few-shot prompts; write {name}")

    def parts(self) -> tuple[Eval, ...]:
        """Return one part per task."""
        return tuple(dataclasses.replace(self, tasks=[task]) for task in self.tasks)

    @override
    def settings(self, bench: "Bench") -> dict[str, Any]:
        own = [task_files.split_shots(task)[0] for task in self.tasks if task_files.is_task_path(task)]
        shots = ",".join(task_files.split_shots(task)[1] for task in self.tasks)
        return {"limit": self.limit, "shots": shots or None, "task": own or None}

    @override
    def digested(self) -> dict[str, Any]:
        return {"tasks": [Path(task).name if task_files.is_task_path(task) else task for task in self.tasks]}

    def reads(self, bench: "Bench") -> Any:
        """Return the digests of the local question sets, and lm-eval's version for the other tasks."""
        from importlib.metadata import version

        names = [task_files.split_shots(task)[0] for task in self.tasks]
        items = {name: questions.questions_digest(name) for name in names if name in questions.SET_NAMES}
        about = {"lm_eval": version("lm_eval"), "questions": items, "separator": bench.separator}
        own = [sorted(self.content(task, bench).values()) for task in self.tasks]
        return about | ({"files": own} if any(own) else {})

    def content(self, task: str, bench: "Bench") -> dict[str, str]:
        """Return the hashes of a user-defined task's files, read when the run first asks for them."""
        if task in questions.SET_NAMES:
            return {}
        key = f"eval.tasks {task}"
        if key not in bench.texts.contents:
            bench.texts.contents[key] = task_files.task_content(task, self.include_path)
        return bench.texts.contents[key]

    @override
    def check(self) -> None:
        if self.include_path is not None:
            task_files.list_task_files(self.include_path)
        names = [task_files.split_shots(task)[0] for task in self.tasks if not task_files.is_task_path(task)]
        if others := [name for name in names if name not in questions.SET_NAMES]:
            from depthcut.eval.likelihood import lm_eval

            with lm_eval.quiet_lm_eval():
                for name in others:
                    lm_eval.require(name, self.include_path)

    def prepare(self, bench: "Bench") -> None:
        """Load the tasks; an unknown name or an unreachable hub fails here."""
        from depthcut.eval.likelihood import lm_eval

        with lm_eval.quiet_lm_eval():
            for task in self.tasks:
                before = self.content(task, bench)
                lm_eval.load_task(task, bench.cache, self.include_path)
                if before and before != task_files.task_content(task, self.include_path):
                    raise UserError(f"eval.tasks: a file of {task} changed during the run; run the same command again")

    def __call__(
        self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY
    ) -> "list[dict[str, float]] | None":
        """Measure each task: ``arc_easy/acc``, ``arc_easy/acc_stderr``, ...

        Returns:
            The numbers of each cut; None if there are cuts and a task generates text.

        Raises:
            UserError: as :meth:`prepare`.
        """
        from depthcut.eval.likelihood import lm_eval

        try:
            return lm_eval.evaluate_tasks(model, bench, self, cuts)
        except lm_eval.UnshareableTask:
            return None
