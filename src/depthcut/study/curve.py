"""The curve: evaluates the dense model, all its cuts, and the cuts healed by adapters above them, together.

A batch passes the dense layers once and branches at each cut; cuts share their common prefixes
(:mod:`depthcut.model.decoder.shared_prefix`). Each result is stored under the name that a run of that point alone would
use, so a later sweep finds it.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.config import experiment
from depthcut.cut import subnetworks
from depthcut.eval import Eval
from depthcut.heal.training.recipe import LowRankRecipe
from depthcut.replace.none import NoReplacement
from depthcut.runtime import failures, progress, store
from depthcut.study import digests, preflight, recording, runlog
from depthcut.study.run import Run, Stage, open_run
from depthcut.study.scoring import Scoring

if TYPE_CHECKING:
    from torch import nn


def share_passes(configs: Iterable[Mapping[Any, Any]]) -> set[Path]:
    """Do what the points that are not done have in common; a model is loaded once for all cuts of it.

    What cannot be shared, and what goes wrong, is left to each point, which tells of it.

    Returns:
        The folders of the points whose healing failed; each says why.
    """
    bases: dict[str, list[Run]] = {}
    for each in configs:
        with suppress(ValueError):
            here = open_run(experiment.build_experiment(each))
            if recording.finished_record(here) is None and isinstance(here.experiment.replace, NoReplacement):
                bases.setdefault(digests.base_digest(here), []).append(here)
    failed: set[Path] = set()
    for runs in bases.values():
        try:
            failed |= measure_together(runs)
        except failures.STOPS:
            raise
        except BaseException as error:
            progress.print_line(f"no shared pass, each point goes by itself: {failures.error_line(error)}")
    return failed


def measure_together(runs: Sequence[Run]) -> set[Path]:
    """Evaluate points that have their base in common, heal those that share still, evaluate what became of them."""
    there = plan_points(runs)
    measure_shared_stages(there, ("dense", "pruned"))
    above = [here for here in there if heals_above_cut(here) and pending_evaluations([here], ("healed",))]
    if len(above) < 2:
        return set()
    whole = [here for here in above if heal_point(here)]
    measure_shared_stages(whole, ("healed",))
    return {here.folder for here in above} - {here.folder for here in whole}


def plan_points(runs: Iterable[Run]) -> list[Run]:
    """Plan the points; those where that fails are left out. A model that was loaded for it is in the first of them."""
    found: list[Run] = []
    loaded: nn.Module | None = None
    for here in runs:
        here.dense.adopt(loaded)
        with failures.suppress_errors():
            preflight.prepare_run(here)
            here.plan = here.experiment.prune(Scoring(here), here.sizes)
            found.append(here)
        loaded = here.dense.release()
    for here in found[:1]:
        here.dense.adopt(loaded)
    return found


def heals_above_cut(here: Run) -> bool:
    """Whether a point's healing leaves what is in front of its cut as it was."""
    x = here.experiment
    return "healed" in x.stages and isinstance(x.heal, LowRankRecipe) and x.heal.layers == "after_cut"


def heal_point(here: Run) -> bool:
    """Heal a point as it would by itself, so that it finds its adapter; whether that went well."""
    with (
        failures.suppress_errors(),
        recording.point_lock(here),
        recording.attempt_point(here),
        runlog.log_to_point(here),
    ):
        assert here.plan is not None
        plan = here.decide(here.plan)
        if adapter_name(here) and not store.is_verified(here.folder / "adapter", here.digest):
            here.experiment.heal(here.dense.load(plan), plan, here)
        return True
    return False


def adapter_name(here: Run) -> str:
    """The name of a point's adapters; none where there is no layer to put one on."""
    plan, recipe = here.plan, here.experiment.heal
    assert plan is not None
    assert isinstance(recipe, LowRankRecipe)
    return here.digest if recipe.reached(plan, len(plan.keep)) else ""


PendingEvaluation = tuple[Eval, Run, dict[str, subnetworks.Subnetwork]]
"""An evaluation, a point that asks for it, and what is to be measured, by the names that the numbers are kept under."""


def pending_evaluations(runs: Iterable[Run], stages: Sequence[Stage]) -> dict[str, PendingEvaluation]:
    """What is not on file, by the evaluation's digest."""
    found: dict[str, PendingEvaluation] = {}
    for here in runs:
        for part in (part for each in here.experiment.eval.values() for part in each.parts()):
            name = digests.evaluation_digest(part, here)
            for stage in filter(here.experiment.stages.__contains__, stages):
                key = store.content_digest({"subject": here.subject(stage), "evaluation": name})
                if not store.is_verified(here.cache / "evaluations" / key):
                    found.setdefault(name, (part, here, {}))[2][key] = stage_subnetwork(here, stage)
    return found


def stage_subnetwork(here: Run, stage: Stage) -> subnetworks.Subnetwork:
    """What a stage of a point measures, as a sub-network of the dense model."""
    assert here.plan is not None
    if stage == "dense":
        return subnetworks.FULL
    return subnetworks.subnetwork_from_plan(here.plan, adapter_name(here) if stage == "healed" else "")


def measure_shared_stages(runs: Sequence[Run], stages: Sequence[Stage]) -> None:
    """Evaluate what these stages of the points are, and put the numbers where each point looks for them."""
    if not runs:
        return
    first = runs[0]
    with store.lock(first.cache / f".{digests.base_digest(first)}.lock"):  # another sweep may be at it
        wanted = pending_evaluations(runs, stages)
        model = dense_with_adapters(runs, stages) if wanted else None
        for part, asker, asked in wanted.values():
            assert model is not None
            progress.print_line(f"{type(part).__name__.lower()}: {' and '.join(stages)}, {len(asked)} in one pass")
            values = part(model, asker, list(asked.values()))
            for key, numbers in zip(asked, values or (), strict=bool(values)):
                store.cached_value(first.cache / "evaluations" / key, lambda numbers=numbers: numbers)
    first.dense.release()


def dense_with_adapters(runs: Sequence[Run], stages: Sequence[Stage]) -> "nn.Module":
    """The dense model; to measure healed stages, with the adapters of the points."""
    model = runs[0].dense.whole()
    found = {here.digest: here for here in runs if "healed" in stages and adapter_name(here)}
    if not found:
        return model
    from depthcut.model.decoder.adapters import attach_adapters

    return attach_adapters(
        model, {name: (here.folder / "adapter", here.plan) for name, here in found.items() if here.plan}
    )
