"""The unhealed curve: the dense model and all cuts of it, evaluated together; each point then finds its numbers.

A batch goes through the dense layers once. Where it comes to a cut it branches, and what cuts have in common they share
(:mod:`depthcut.removal`). What is measured is put where a point by itself would keep it, under the same name, so that
there is one way to say what a point is, and a later sweep finds it.
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from depthcut import config, digests, lab, record, runlog, store
from depthcut.eval import Eval
from depthcut.lab import Lab, Stage
from depthcut.plan import NOUNS, Plan, Unit
from depthcut.pricing import Pricing
from depthcut.replace.none import NoReplacement


def share(configs: Sequence[DictConfig]) -> None:
    """Evaluate, before their cuts are healed, all points that are not done; the model is loaded once a base.

    A config with a mistake is left to its own point, which tells of it.
    """
    bases: dict[str, list[Lab]] = {}
    for each in configs:
        try:
            here = lab.enter(config.read(each))
        except ValueError:
            continue
        if record.finished(here) is None and isinstance(here.experiment.replace, NoReplacement):
            bases.setdefault(digests.base(here), []).append(here)
    for labs in bases.values():
        measure(labs)


def measure(labs: Sequence[Lab]) -> None:
    """Evaluate the dense model and the plans of these points, which have their base in common."""
    first = labs[0]
    for here in labs:
        here.prepare()
        here.loaded, here.texts = first.loaded, first.texts
        here.plan = here.experiment.prune(Pricing(here), here.shape)
        first.loaded = here.loaded
    for (_, unit), (part, wanted) in missing(labs).items():
        plans = list(wanted.values())
        models = "1 model" if len(plans) == 1 else f"{len(plans)} models"
        runlog.say(f"{type(part).__name__.lower()}: {models} without some {NOUNS[unit]}, in one pass")
        values = part(first.dense(), first, plans)
        for key, numbers in zip(wanted, values or (), strict=bool(values)):
            first.kept("evaluations", key, lambda numbers=numbers: numbers)
    first.release()


NOTHING = Plan(2, ())
Wanted = tuple[Eval, dict[str, Plan]]


def missing(labs: Sequence[Lab]) -> dict[tuple[str, Unit], Wanted]:
    """For each evaluation and unit the plans whose numbers are not on file, by the names that they are kept under."""
    found: dict[tuple[str, Unit], Wanted] = {}
    for here in labs:
        assert here.plan is not None
        stages: dict[Stage, Plan] = {"dense": NOTHING, "pruned": here.plan}
        for part in (part for each in here.experiment.eval.values() for part in each.parts()):
            name = digests.evaluation(part, here)
            for stage in stages.keys() & {*here.experiment.stages}:
                key = store.digest({"subject": here.subject(stage), "evaluation": name})
                if not store.verified(here.cache / "evaluations" / key):
                    plans = found.setdefault((name, here.plan.unit), (part, {}))[1]
                    plans[key] = stages[stage]
    return found
