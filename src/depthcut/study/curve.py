"""The curve: evaluates the dense model, all its cuts, and the cuts healed by adapters above them, together.

A batch passes the dense layers once and branches at each cut; cuts share their common prefixes
(:mod:`depthcut.model.decoder.shared_prefix`). Each result is cached under the key that a run of its point alone would
use, so a later sweep finds it.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.config import build
from depthcut.cut import subnetworks
from depthcut.eval import Eval
from depthcut.heal.training.low_rank_recipe import LowRankRecipe
from depthcut.replace.none import NoReplacement
from depthcut.runtime import failures, progress, store, verified
from depthcut.study import digests, preflight, recording, runlog
from depthcut.study.run import Run, Stage, open_run
from depthcut.study.scoring import Scoring

if TYPE_CHECKING:
    from torch import nn


def share_passes(configs: Iterable[Mapping[Any, Any]]) -> set[Path]:
    """Run the shared parts of unfinished points; the model is loaded once for all its cuts.

    Parts that cannot be shared, and parts that fail, are left to the points, which report the errors.

    Returns:
        The folders of the points whose healing failed, each with its reason.
    """
    bases: dict[str, list[Run]] = {}
    for each in configs:
        with suppress(ValueError):
            here = open_run(build.build_experiment(each))
            if recording.finished_record(here) is None and isinstance(here.experiment.replace, NoReplacement):
                bases.setdefault(digests.base_digest(here), []).append(here)
    failed: set[Path] = set()
    for runs in bases.values():
        try:
            failed |= measure_together(runs)
        except failures.STOPS:
            raise
        except BaseException as error:
            progress.print_line(f"no shared pass, running each point separately: {failures.error_line(error)}")
    return failed


def measure_together(runs: Sequence[Run]) -> set[Path]:
    """Evaluate points with a common base, heal those that can be evaluated together afterwards, and evaluate them."""
    there = plan_points(runs)
    measure_shared_stages(there, ("dense", "pruned"))
    above = [here for here in there if heals_above_cut(here) and pending_evaluations([here], ("healed",))]
    if len(above) < 2:
        return set()
    whole = [here for here in above if heal_point(here)]
    measure_shared_stages(whole, ("healed",))
    return {here.folder for here in above} - {here.folder for here in whole}


def plan_points(runs: Iterable[Run]) -> list[Run]:
    """Return the points that could be planned; the first of them holds the model, if planning loaded it."""
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
    """Return whether a point's healing leaves the layers before its cut unchanged."""
    x = here.experiment
    return "healed" in x.stages and isinstance(x.heal, LowRankRecipe) and x.heal.layers == "after_cut"


def heal_point(here: Run) -> bool:
    """Heal a point as its own run would, which then finds its adapter; return whether it succeeded."""
    with (
        failures.suppress_errors(),
        recording.point_lock(here),
        recording.attempt_point(here),
        runlog.log_to_point(here),
    ):
        assert here.plan is not None
        plan = here.decide(here.plan)
        if adapter_name(here) and not verified.is_verified(here.folder / "adapter", here.digest):
            here.experiment.heal(here.dense.load(plan), plan, here)
        return True
    return False


def adapter_name(here: Run) -> str:
    """Return the name of a point's adapters; empty if no layer can have one."""
    plan, recipe = here.plan, here.experiment.heal
    assert plan is not None
    assert isinstance(recipe, LowRankRecipe)
    return here.digest if recipe.reached(plan, len(plan.keep)) else ""


PendingEvaluation = tuple[Eval, Run, dict[str, subnetworks.Subnetwork]]
"""An evaluation, a point that requests it, and its sub-networks, by the cache keys of their numbers."""


def pending_evaluations(runs: Iterable[Run], stages: Sequence[Stage]) -> dict[str, PendingEvaluation]:
    """Return the evaluations without cached results, by digest."""
    found: dict[str, PendingEvaluation] = {}
    for here in runs:
        for part in (part for each in here.experiment.eval.values() for part in each.parts()):
            name = digests.evaluation_digest(part, here)
            for stage in filter(here.experiment.stages.__contains__, stages):
                key = store.content_digest({"subject": here.subject(stage), "evaluation": name})
                if not verified.is_verified(here.cache / "evaluations" / key):
                    found.setdefault(name, (part, here, {}))[2][key] = stage_subnetwork(here, stage)
    return found


def stage_subnetwork(here: Run, stage: Stage) -> subnetworks.Subnetwork:
    """Return the sub-network of the dense model that a stage of a point measures."""
    assert here.plan is not None
    if stage == "dense":
        return subnetworks.FULL
    return subnetworks.subnetwork_from_plan(here.plan, adapter_name(here) if stage == "healed" else "")


def measure_shared_stages(runs: Sequence[Run], stages: Sequence[Stage]) -> None:
    """Evaluate these stages of the points together, and cache the numbers of each point."""
    if not runs:
        return
    first = runs[0]
    with store.lock(first.cache / f".{digests.base_digest(first)}.lock"):  # another sweep may be evaluating
        wanted = pending_evaluations(runs, stages)
        model = dense_with_adapters(runs, stages) if wanted else None
        for part, asker, asked in wanted.values():
            assert model is not None
            progress.print_line(f"{type(part).__name__.lower()}: {' and '.join(stages)}, {len(asked)} in one pass")
            values = part(model, asker, list(asked.values()))
            for key, numbers in zip(asked, values or (), strict=bool(values)):
                verified.cached_value(first.cache / "evaluations" / key, lambda numbers=numbers: numbers)
    first.dense.release()


def dense_with_adapters(runs: Sequence[Run], stages: Sequence[Stage]) -> "nn.Module":
    """Return the dense model; for healed stages, with the adapters of the points."""
    model = runs[0].dense.whole()
    found = {here.digest: here for here in runs if "healed" in stages and adapter_name(here)}
    if not found:
        return model
    from depthcut.model.decoder.adapters import attach_adapters

    return attach_adapters(
        model, {name: (here.folder / "adapter", here.plan) for name, here in found.items() if here.plan}
    )
