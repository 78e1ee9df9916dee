"""Content digests: each stage's digest covers exactly its inputs, so nothing is computed twice.

None covers paths, the study's name, the logger or the launcher. All cover a format version; the version of the package
is only recorded.
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
    """Return the digest of the dense model as it is measured: its content, quantisation and dtype."""
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
    """Return the digest of the metric's scores: base, metric, inputs, unit, and the block at which passes stop."""
    metric = run.experiment.metric
    asked = {
        "base": base_digest(run),
        "metric": method_fields(metric),
        "reads": metric.reads(run),
        "unit": run.experiment.prune.unit,
    }
    if metric.stops_early:
        starts, n = run.wanted()
        asked["wanted"] = [starts.start, starts.stop, n]
    return store.content_digest(asked)


def point_digest(run: "RunView") -> str:
    """Return the digest of the point: base, inputs of the plan, replacement, recipe with its text and seed.

    A pruner without scores leaves out the metric; without training, text and seed are left out.
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
    """Return the digest of the pruned model: base and dropped layers, however chosen; unchanged, it is the base."""
    replace = run.experiment.replace
    if not plan.drop and not replace.adds:
        return base_digest(run)
    parts = {"base": base_digest(run), "drop": plan.drop, "unit": plan.unit, "replace": method_fields(replace)}
    if (reads := replace.reads(run)) is not None:
        parts["replace_reads"] = reads
    return store.content_digest(parts)


def evaluation_digest(part: "Eval", run: "RunView") -> str:
    """Return the digest of an evaluation, for any model: its options and inputs."""
    return store.content_digest({"evaluation": method_fields(part) | part.digested(), "reads": part.reads(run)})
