"""Names by content: a stage's digest holds just what that stage reads, so nothing is computed twice.

Paths, the study's name, the logger and the launcher are in none. A format version is; the package's is only recorded.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan
from depthcut.runtime import store

if TYPE_CHECKING:
    from depthcut.eval import Eval
    from depthcut.study.lab import Lab

FORMAT = 3


def method_fields(method: Any) -> dict[str, Any]:
    """A method by its class and its knobs, save those that change speed and memory only (``incidental``).

    A knob that was added later (``optional``) is in it only where it is not null, so that earlier digests hold.
    """
    incidental, optional = (
        set[str]().union(*(vars(cls).get(kind, ()) for cls in type(method).__mro__))
        for kind in ("incidental", "optional")
    )
    values = {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}
    knobs = {
        name: value
        for name, value in values.items()
        if name not in incidental and not (name in optional and value is None)
    }
    return {"class": f"{type(method).__module__}.{type(method).__name__}", **knobs}


def base_digest(lab: "Lab") -> str:
    """The dense model as it is measured: its content, quantisation and dtype."""
    model = lab.experiment.model
    return store.content_digest(
        {
            "format": FORMAT,
            "content": lab.checkpoint.digest,
            "quantise": model.quantise,
            "dtype": model.dtype,
            "separator": model.separator,
        }
    )


def scores_digest(lab: "Lab") -> str:
    """The metric's scores: the base, the metric, what it reads, the unit; the block that a pass stops early for."""
    metric = lab.experiment.metric
    asked = {
        "base": base_digest(lab),
        "metric": method_fields(metric),
        "reads": metric.reads(lab),
        "unit": lab.experiment.prune.unit,
    }
    if getattr(metric, "until", None) is not None:
        starts, n = lab.wanted()
        asked["wanted"] = [starts.start, starts.stop, n]
    return store.content_digest(asked)


def point_digest(lab: "Lab") -> str:
    """The point of a study: the base, what the plan reads, the replacement, the recipe with its text and seed.

    A pruner that reads no scores has no metric in it, and no healing no text and no seed.
    """
    x = lab.experiment
    parts: dict[str, Any] = {
        "base": base_digest(lab),
        "prune": method_fields(x.prune),
        "count": x.prune.count(lab.shape),
        "replace": method_fields(x.replace),
        "heal": method_fields(x.heal),
    }
    if x.prune.content() is not None:
        parts["content"] = x.prune.content()
    if (content := x.heal.content(lab)) is not None:
        parts["heal_content"] = content
    if x.prune.reads_scores:
        parts["scores"] = scores_digest(lab)
    if x.heal.trains:
        parts |= {"train": lab.text_identity("train"), "seed": x.seed}
    if (reads := x.replace.reads(lab)) is not None:
        parts["replace_reads"] = reads
    return store.content_digest(parts)


def pruned_digest(lab: "Lab", plan: Plan) -> str:
    """The pruned model: the base and the layers that go, however chosen. With none gone or added it is the base."""
    replace = lab.experiment.replace
    if not plan.drop and not replace.adds:
        return base_digest(lab)
    parts = {"base": base_digest(lab), "drop": plan.drop, "unit": plan.unit, "replace": method_fields(replace)}
    if (reads := replace.reads(lab)) is not None:
        parts["replace_reads"] = reads
    return store.content_digest(parts)


def evaluation_digest(part: "Eval", lab: "Lab") -> str:
    """An evaluation, whatever the model: its knobs and what it reads."""
    return store.content_digest({"evaluation": method_fields(part) | part.digested(), "reads": part.reads(lab)})
