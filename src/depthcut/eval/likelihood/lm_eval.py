"""lm-eval on a model in memory, offline for local question sets (lm-evaluation-harness 0.4)."""

import logging
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import nn
from tqdm import tqdm

from depthcut.cut.subnetworks import FULL, Subnetwork
from depthcut.data import questions
from depthcut.eval.likelihood import packed_requests, task_files, tree_attention
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.eval import Bench

BOOTSTRAP = 1000  # at 0, lm-eval gives no standard errors at all, though that of a mean needs no bootstrap


class UnshareableTask(Exception):  # noqa: N818  a signal to the caller, not an error
    """A task generates text, which cuts cannot do in one pass."""


class SubnetworkLM(HFLM):
    """lm-eval model that evaluates one cut at a time, with :mod:`depthcut.eval.likelihood.tree_attention`.

    Attributes:
        cuts: the sub-networks.
        now: index of the cut under evaluation.
        known: answers of all cuts to the requests seen so far.
        encoded: tokens of these requests, by their texts.
    """

    cuts: Sequence[Subnetwork]
    now: int = 0
    known: dict[packed_requests.Request, list[tree_attention.Answer]]
    encoded: dict[tuple[str, str], Any]

    def _loglikelihood_tokens(self, requests: Any, *_: Any, **__: Any) -> Any:
        """Return the answers of the current cut; the first request computes those of all cuts."""
        lm: Any = self  # lm-eval's attributes have no types
        asked = [crop_request(tuple(context), tuple(follow), lm.max_length) for _, context, follow in requests]
        if new := [request for request in asked if request not in self.known]:
            self.known |= tree_attention.log_likelihoods(lm.model, new, self.cuts, int(lm.batch_size))
        return [self.known[request][self.now] for request in asked]

    def _encode_pair(self, context: str, continuation: str) -> Any:
        """Tokenise a context and its continuation once for all cuts."""
        if (context, continuation) not in self.encoded:
            lm: Any = super()
            self.encoded[context, continuation] = lm._encode_pair(context, continuation)
        return self.encoded[context, continuation]

    def generate_until(self, requests: Any, **settings: Any) -> Any:
        """Generate text; supported without cuts only."""
        self._alone()
        return super().generate_until(requests, **settings)

    def loglikelihood_rolling(self, requests: Any, **settings: Any) -> Any:
        """Score whole texts; supported without cuts only."""
        self._alone()
        return super().loglikelihood_rolling(requests, **settings)

    def _alone(self) -> None:
        if list(self.cuts) != [FULL]:
            raise UnshareableTask


def crop_request(
    context: packed_requests.TokenIds, follow: packed_requests.TokenIds, longest: int
) -> packed_requests.Request:
    """Crop a request that is too long for the model from the left, as lm-eval does."""
    return context[-max(1, longest + 1 - len(follow)) :], follow


class TaskRequest(Protocol):
    """The options of an lm-eval run; :class:`depthcut.eval.harness.Harness` explains each."""

    @property
    def tasks(self) -> list[str]: ...

    @property
    def limit(self) -> int | None: ...

    @property
    def include_path(self) -> str | None: ...

    @property
    def batch(self) -> int: ...


def evaluate_tasks(
    model: nn.Module, bench: "Bench", asked: TaskRequest, cuts: Sequence[Subnetwork]
) -> list[dict[str, float]]:
    """Run the tasks (``name`` or ``name@shots``) on each of the ``cuts`` of ``model``; return numbers by flat names.

    Raises:
        UserError: if a task does not exist, or its data is unreachable.
        UnshareableTask: if a task generates text and cuts are given.
    """
    flat: list[dict[str, float]] = [{} for _ in cuts]
    with quiet_lm_eval():
        lm = wrap_model(model, bench, asked.batch, cuts)
        for task in asked.tasks:
            loaded, lm.known, lm.encoded = load_task(task, bench.cache, asked.include_path), {}, {}
            for lm.now in range(len(cuts)):
                results: Any = lm_evaluate(
                    lm=lm, task_dict=loaded, limit=asked.limit, bootstrap_iters=BOOTSTRAP, log_samples=False
                )
                flat[lm.now] |= measured(lm, results)
    return flat


def measured(lm: SubnetworkLM, results: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of the current cut, with the items per task; no scores if a likelihood was NaN."""
    groups: dict[str, list[str]] = results.get("group_subtasks", {})
    counts: dict[str, int] = {task: each["effective"] for task, each in results["n-samples"].items()}

    def items(task: str) -> int:
        return counts[task] if task in counts else sum(map(items, groups.get(task, ())))

    counted: dict[str, float] = {f"{task}/items": items(task) for task in results["results"]}
    if any(math.isnan(answers[lm.now][0]) for answers in lm.known.values()):
        return {f"{task}/likelihood_finite": 0 for task in results["results"]} | counted
    return flat_results(results["results"]) | counted


def flat_results(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Flatten lm-eval's ``{task: {"acc,none": x, "acc_stderr,none": y, ...}}``; only finite numbers get a key."""
    flat: dict[str, float] = {}
    for task, values in results.items():
        for key, value in values.items():
            name, _, variant = key.partition(",")
            if isinstance(value, int | float) and math.isfinite(value) and variant and not name.startswith("sample"):
                suffix = "" if variant == "none" else f"@{variant}"
                flat[f"{task}/{name}{suffix}"] = float(value)
    return flat


def wrap_model(model: nn.Module, bench: "Bench", batch: int, cuts: Sequence[Subnetwork]) -> SubnetworkLM:
    """Wrap ``model`` for lm-eval; an empty context begins with the model's separator, if it has its own."""
    tokenizer = bench.tokenizer
    separator = bench.separator
    prefix = None if separator is None else tokenizer.convert_tokens_to_ids(separator)
    settings: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": batch, "device": bench.device}
    lm = SubnetworkLM(**settings, pretrained=model, prefix_token_id=prefix, softmax_dtype="float32")  # pyright: ignore
    lm.cuts, lm.known, lm.encoded = cuts, {}, {}
    return lm


@cache
def load_task(task: str, folder: Path, include_path: str | None = None) -> Any:
    """Load a task; ``folder`` caches the local sets, ``include_path`` holds user-defined tasks.

    Raises:
        UserError: as :func:`evaluate_tasks`.
    """
    name, shots = task_files.split_shots(task)
    if name in questions.SET_NAMES:
        loaded: Any = TaskManager(include_defaults=False).load([questions.lm_eval_task(name, folder)])
    else:
        loaded = (
            load_own(name, include_path) if task_files.is_task_path(task) else load_builtin_task(name, include_path)
        )
    for each in loaded["tasks"].values():
        if shots:
            each.set_config(key="num_fewshot", value=int(shots))
        each.set_fewshot_seed(seed=1234)
    return loaded


@cache
def task_manager(include_path: str | None) -> TaskManager:
    """Return a manager of lm-eval's tasks and those of a folder; finding them takes seconds."""
    return TaskManager(include_path=include_path and str(task_files.task_path(include_path)))


def require(name: str, include_path: str | None) -> None:
    """Check that a task exists, without its data.

    Raises:
        UserError: if neither depthcut nor lm-eval knows it.
    """
    if name in questions.SET_NAMES or name in task_manager(include_path).all_tasks:
        return
    close = get_close_matches(name, questions.SET_NAMES, n=1) or get_close_matches(
        name, task_manager(include_path).all_tasks, n=1
    )
    meant = f" Did you mean {close[0]}?" if close else ""
    local = ", ".join(questions.SET_NAMES)
    raise UserError(f"eval.tasks: no task {name!r}.{meant} Local: {local}; `lm-eval ls tasks` lists lm-eval's own")


def load_own(name: str, include_path: str | None) -> Any:
    """Load a user-defined task from a yaml file.

    Raises:
        UserError: for any error that lm-eval raises.
    """
    path = task_files.task_path(name)
    try:
        return task_manager(include_path).load([str(path)])
    except Exception as error:  # keys, functions, data: any of them may be wrong in any way
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"eval.tasks: lm-eval cannot load {path}: {type(error).__name__}: {reason}") from error


def load_builtin_task(name: str, include_path: str | None) -> Any:
    """Load one of lm-eval's tasks, whose data comes from the hub, or one of a folder."""
    require(name, include_path)
    try:
        return task_manager(include_path).load([name])
    except Exception as error:  # the error of a dead network depends on the versions of three libraries
        raise UserError(
            f"eval.tasks: could not get the data of {name!r} from the hub ({type(error).__name__}). "
            f"Connect once, or use a local set: {', '.join(questions.SET_NAMES)}"
        ) from error


@contextmanager
def quiet_lm_eval() -> Generator[None]:
    """Silence lm-eval except for errors; its progress bars show only while they move, in a terminal."""
    logger = logging.getLogger("lm_eval")
    level, plain = logger.level, tqdm.__init__

    def unobtrusive(bar: Any, *args: Any, **settings: Any) -> None:
        plain(bar, *args, **{**settings, "leave": False, "disable": settings.get("disable") or None})

    logger.setLevel(logging.ERROR)
    tqdm.__init__ = unobtrusive  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        logger.setLevel(level)
        tqdm.__init__ = plain
