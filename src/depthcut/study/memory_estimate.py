"""Estimated memory and time of an experiment on one base."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depthcut.model.surgery.sizes import ModelSize
from depthcut.runtime.devices import GIB

if TYPE_CHECKING:
    from depthcut.config.experiment import Experiment
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.decoder.quantisation import Quantise

CUDA_CONTEXT_BYTES = GIB  # of the GPU's memory, for CUDA itself and the libraries


def pruner_sizes(x: "Experiment", checkpoint: "Checkpoint") -> ModelSize:
    """Return the model's sizes for the pruner, computed only if it needs them."""
    return unit_sizes(x, checkpoint) if x.prune.needs_weights else ModelSize(checkpoint.depth)


def unit_sizes(x: "Experiment", checkpoint: "Checkpoint") -> ModelSize:
    """Return the sizes of the dense model and of its units."""
    return ModelSize.from_config(checkpoint.config, x.prune.unit, x.model.quantise, x.model.dtype)


def compare_bases(choices: "dict[Quantise, Experiment]", checkpoint: "Checkpoint", memory: int) -> dict[str, str]:
    """Choose by the memory that each base needs, and the speed of healing on it."""
    plain, packed = (MemoryEstimate.of(each, checkpoint, memory - CUDA_CONTEXT_BYTES) for each in choices.values())
    need, there = f"{(plain.need + CUDA_CONTEXT_BYTES) / GIB:.1f} GiB", f"{memory / GIB:.1f}"
    dtype = choices["none"].model.dtype
    if not plain.fits:
        why = f"in {dtype} the run needs about {need}, the GPU has {there} GiB"
        return {"quantise": "nf4", "why": why}
    if packed.fits and packed.cost < plain.cost:
        why = f"{dtype} leaves less room for activations: about {plain.cost / packed.cost - 1:.0%} slower"
        return {"quantise": "nf4", "why": why}
    return {"quantise": "none", "why": f"{dtype} fits, with about {need} of {there} GiB, and is faster than 4 bits"}


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory and time of a run on a base.

    Attributes:
        need: peak memory in bytes.
        fits: whether it fits.
        cost: time per token, as :meth:`depthcut.heal.training.memory_plan.MemoryPlan.cost`; 0 without training.
    """

    need: int
    fits: bool
    cost: float

    @classmethod
    def of(cls, x: "Experiment", checkpoint: "Checkpoint", memory: int) -> "MemoryEstimate":
        """Estimate memory and time of an experiment."""
        from depthcut.heal.training import memory_plan

        shape, n = unit_sizes(x, checkpoint), x.prune.count(pruner_sizes(x, checkpoint))
        whole = shape.total["weight_bytes"]
        left = whole - sum(sorted(shape.weight_bytes)[:n])
        if needs_dense_model(x) and whole > (1 - memory_plan.RESERVED_FRACTION) * memory:
            return cls(whole, False, 0)
        if not x.heal.trains:
            return cls(left, left <= (1 - memory_plan.RESERVED_FRACTION) * memory, 0)
        held = left + (whole if x.heal.keeps_dense else 0)
        space = plan_heal_memory(x, checkpoint, n, memory - held)
        recipe: Any = x.heal
        layout = memory_plan.choose_layouts(space, recipe, compiled=recipe.compile is not False)[0]
        return cls(held + space.needs(layout), space.free > 0 and space.fits(layout), space.cost(layout))


def plan_heal_memory(x: "Experiment", checkpoint: "Checkpoint", n: int, free: int) -> Any:
    """Return the memory plan for healing the model without ``n`` units, with adapters on all linear layers at most."""
    import torch

    from depthcut.heal.training.memory_plan import MemoryPlan
    from depthcut.model.decoder import layers as decoder_layers
    from depthcut.model.decoder import linear

    recipe: Any = x.heal
    bare: Any = decoder_layers.meta_model(checkpoint.config).to(getattr(torch, x.model.dtype)).requires_grad_(False)
    bare.is_loaded_in_4bit = x.model.quantise == "nf4"
    space = MemoryPlan.of(bare, recipe, "cpu")
    layers = space.layers - (n if x.prune.unit == "layer" else 0)
    widths = [
        sum(linear.linear_features(each)) for each in linear.linear_layers(decoder_layers.layer_list(bare)[0]).values()
    ]
    adapters = layers * recipe.rank * sum(widths)
    state = 2 + 4 + (2 if recipe.optimiser != "adamw" else 8)  # bytes per number, with its gradient
    return dataclasses.replace(space, layers=max(layers, 1), fixed=space.fixed + state * adapters, free=max(free, 0))


def needs_dense_model(x: "Experiment") -> bool:
    """Return whether the whole model must fit in memory at some point."""
    scored = x.prune.reads_scores and (x.stream == "never" or not x.metric.streams)
    return "dense" in x.stages or scored
