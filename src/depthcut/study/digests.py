"""Names by content: a stage's digest holds just what that stage reads, so nothing is computed twice.

Paths, the study's name, the logger and the launcher are in none. A format version is; the package's is only recorded.
"""

from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan
from depthcut.runtime import store
from depthcut.runtime.strict import method_fields

if TYPE_CHECKING:
    from depthcut.eval import Eval
    from depthcut.study.view import RunView

FORMAT = 3


def base_digest(run: "RunView") -> str:
    """The dense model as it is measured: its content, quantisation and dtype."""
    model = run.experiment.model
    return store.content_digest(
        {
            "format": FORMAT,
            "content": run.checkpoint.digest,
            "quantise": model.quantise,
            "dtype": model.dtype,
            "separator": model.separator,
        }
    )


def scores_digest(run: "RunView") -> str:
    """The metric's scores: the base, the metric, what it reads, the unit; the block that a pass stops early for."""
    metric = run.experiment.metric
    asked = {
        "base": base_digest(run),
        "metric": method_fields(metric),
        "reads": metric.reads(run),
        "unit": run.experiment.prune.unit,
    }
    if getattr(metric, "until", None) is not None:
        starts, n = run.wanted()
        asked["wanted"] = [starts.start, starts.stop, n]
    return store.content_digest(asked)


def point_digest(run: "RunView") -> str:
    """The point of a study: the base, what the plan reads, the replacement, the recipe with its text and seed.

    A pruner that reads no scores has no metric in it, and no healing no text and no seed.
    """
    x = run.experiment
    parts: dict[str, Any] = {
        "base": base_digest(run),
        "prune": method_fields(x.prune),
        "count": x.prune.count(run.sizes),
        "replace": method_fields(x.replace),
        "heal": method_fields(x.heal),
    }
    if x.prune.content() is not None:
        parts["content"] = x.prune.content()
    if (content := x.heal.content(run)) is not None:
        parts["heal_content"] = content
    if x.prune.reads_scores:
        parts["scores"] = scores_digest(run)
    if x.heal.trains:
        parts |= {"train": run.texts.identity("train"), "seed": x.seed}
    if (reads := x.replace.reads(run)) is not None:
        parts["replace_reads"] = reads
    return store.content_digest(parts)


def pruned_digest(run: "RunView", plan: Plan) -> str:
    """The pruned model: the base and the layers that go, however chosen. With none gone or added it is the base."""
    replace = run.experiment.replace
    if not plan.drop and not replace.adds:
        return base_digest(run)
    parts = {"base": base_digest(run), "drop": plan.drop, "unit": plan.unit, "replace": method_fields(replace)}
    if (reads := replace.reads(run)) is not None:
        parts["replace_reads"] = reads
    return store.content_digest(parts)


def evaluation_digest(part: "Eval", run: "RunView") -> str:
    """An evaluation, whatever the model: its knobs and what it reads."""
    return store.content_digest({"evaluation": method_fields(part) | part.digested(), "reads": part.reads(run)})
