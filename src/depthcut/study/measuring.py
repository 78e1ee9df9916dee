"""Evaluations of a stage: each runs unless its result is cached by model and inputs."""

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from depthcut.record import measured, state
from depthcut.report import table
from depthcut.runtime import store, verified
from depthcut.runtime.errors import UserError
from depthcut.study import digests

if TYPE_CHECKING:
    from torch import nn

    from depthcut.eval import Eval
    from depthcut.study.run import Run, Stage


def evaluate(run: "Run", stage: "Stage", model: "Callable[[], nn.Module]") -> None:
    """Evaluate a stage, skipping results already on disk; ``model`` is called only if one is missing."""
    if stage not in run.experiment.stages or (stage == "healed" and not run.experiment.heal.trains):
        return
    plan = None if stage == "dense" else run.plan
    run.run_sharded(plan, model, partial(measure_stage, run, stage))


def measure_stage(run: "Run", name: "Stage", model: "Callable[[], nn.Module]") -> None:
    """Add the results of a stage's evaluations to ``run``; ``model`` is called only if one is missing.

    Raises:
        UserError: if the dense model gives a non-finite number.
    """
    found = measured.measured_from_record(state.read_record(run.folder), name)
    asked: list[str] = []
    for key, evaluation in run.experiment.eval.items():
        for part in evaluation.parts():
            digest = digests.evaluation_digest(part, run)
            values = evaluated(run, name, model, part, digest)
            check_finite(name, key, values, run)
            found.pop(digest, None)
            found[digest] = measurement(key, part, values, run)
            asked.append(digest)
    run.remarks += [line for line in measured.describe_kept(found, asked) if line not in run.remarks]
    run.measured[name] = measured.current_evaluations(found)
    run.numbers |= {f"{name}/{metric}": value for metric, value in measured.named_numbers(found).items()}


def evaluated(
    run: "Run", name: "Stage", model: "Callable[[], nn.Module]", part: "Eval", digest: str
) -> dict[str, float]:
    """Return the result of an evaluation, from the cache if possible."""

    key = store.content_digest({"subject": run.subject(name), "evaluation": digest})

    def make() -> dict[str, float]:
        subject = model()
        with run.numbers.timed(f"{name}_eval"):
            found = part(subject, run)
        assert found is not None, "an uncut model can be measured"
        return found[0]

    return verified.cached_value(run.cache / "evaluations" / key, make)


def check_finite(name: "Stage", key: str, values: dict[str, float], run: "Run") -> None:
    """Raise if a number of the dense model is not finite; add a remark for a cut or healed model."""
    broken = [number.removesuffix("_finite") for number in values if number.endswith("_finite") and not values[number]]
    if broken and name == "dense":
        dtype = run.experiment.model.dtype
        raise UserError(
            f"eval.{key}: the dense model's {broken[0]} is not finite. Its weights have NaN or infinity, or overflow "
            f"in model.dtype={dtype}: use another dtype, or correct the weights"
        )
    run.remarks += [f"warning: the {name} model's {number} is not finite" for number in broken]
    if key != "speculative" and all(table.is_note(number) for number in values):
        run.remarks.append(f"warning: eval.{key} returned no number for the {name} model")


def measurement(key: str, part: "Eval", values: dict[str, float], run: "Run") -> measured.Measured:
    """Return an evaluation's numbers with the settings that they depend on."""
    settings = json.loads(json.dumps(part.settings(run)))
    sample = {option: value for option, value in settings.items() if option in part.sample}
    return measured.Measured(
        key, {option: value for option, value in settings.items() if option not in sample}, sample, values
    )
