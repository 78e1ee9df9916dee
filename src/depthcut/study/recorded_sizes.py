"""Sizes of the dense, pruned and healed models for the record."""

from typing import TYPE_CHECKING

from depthcut.cut.plan import Plan
from depthcut.runtime import verified

if TYPE_CHECKING:
    from depthcut.model.surgery.sizes import SizeName
    from depthcut.study.run import Run


def record_sizes(run: "Run") -> None:
    """Record the sizes of the dense, cut and healed models, including replacements."""
    from depthcut.replace.none import NoReplacement

    x = run.experiment
    assert run.plan is not None
    dense = run.dense.sizes(run.plan.unit)
    left = (
        dense.totals_without(run.plan.drop)
        if isinstance(x.replace, NoReplacement)
        else filled_model_sizes(run, run.plan)
    )
    stages = {"dense": dense.total, "pruned": left}
    if x.heal.trains:
        stages["healed"] = x.heal.healed_sizes(run, run.plan, left)
    run.numbers |= {f"{stage}/size/{size}": n for stage, sizes in stages.items() for size, n in (sizes or {}).items()}


def filled_model_sizes(run: "Run", plan: Plan) -> "dict[SizeName, int] | None":
    """Return the four sizes of the pruned model with its replacement; None if the replacement is not on disk.

    Adapters are not counted, because they can be merged.
    """
    import torch

    from depthcut.model.decoder import layers
    from depthcut.model.decoder.quantisation import LoadConfig
    from depthcut.model.surgery import gaps, sizes
    from depthcut.model.surgery.filling import Filling

    folder, dense = run.cache / "replacements" / run.key(plan), run.dense
    if not verified.is_verified(folder):
        return None
    model = sizes.typed_meta_model(layers.trimmed_config(dense.config, plan.drop), dense.dtype)
    gaps.insert_filling(model, Filling.read(folder), plan, LoadConfig("none", getattr(torch, dense.dtype), "cpu"))
    return sizes.model_sizes(model, dense.quantise, dense.dtype)
