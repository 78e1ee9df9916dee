"""``model.quantise=auto``: unquantised weights if they fit on the GPU and train faster, otherwise NF4.

The choice is made before any digest is computed. It depends only on values that are constant on a machine: the model,
the cut, the recipe and the size of the GPU's memory, not its free part. The memory planner of healing gives the
estimate, which is cached; a finished point then needs no torch.
"""

import dataclasses
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.heal.lora import Lora
from depthcut.heal.qlora import QLora
from depthcut.model.surgery.sizes import ModelSize
from depthcut.runtime import ranks, store
from depthcut.runtime.devices import GIB

if TYPE_CHECKING:
    from depthcut.config.experiment import Experiment
    from depthcut.heal import Heal
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.decoder.quantisation import Quantise

FORMAT = 1
CHOICES: "tuple[Quantise, ...]" = ("none", "nf4")
CUDA_CONTEXT_BYTES = GIB  # of the GPU's memory, for CUDA itself and the libraries


def resolve_quantise(x: "Experiment", checkpoint: "Checkpoint", cache: Path) -> "tuple[Experiment, str]":
    """Return the experiment with ``auto`` replaced by a base, in its config too, and the reason in words."""
    if not x.model.quantise_is_auto:
        return x, ""
    found = choose_base(x, checkpoint, cache, gpu_memory(x.device))
    base: Any = found["quantise"]
    return with_quantise(x, base), f"model.quantise=auto: {base}; {found['why']}"


def with_quantise(x: "Experiment", base: "Quantise") -> "Experiment":
    """Return the experiment on this base. LoRA and QLoRA are one recipe; the base decides between them."""
    composed = {**x.composed, "model": {**x.composed["model"], "quantise": base}}
    heal: Heal = x.heal
    if isinstance(heal, Lora | QLora):
        kind: Any = Lora if base == "none" else QLora
        heal = kind(**recipe_knobs(heal))
        composed["heal"] = {**composed["heal"], "_target_": f"{kind.__module__}.{kind.__name__}"}
    return dataclasses.replace(x, model=dataclasses.replace(x.model, quantise=base), heal=heal, composed=composed)


def recipe_knobs(heal: "Heal") -> dict[str, Any]:
    """Return the recipe's options."""
    return {each.name: getattr(heal, each.name) for each in dataclasses.fields(heal)}


def possible_bases(x: "Experiment") -> "list[Quantise]":
    """Return the bases that the recipe can train on and the metric can score; FSDP2 corrupts quantised ones."""
    if x.heal.shards:
        return ["none"]
    trainable = CHOICES if isinstance(x.heal, Lora | QLora) else x.heal.bases
    scored = x.metric.bases if x.prune.reads_scores else CHOICES
    return [base for base in CHOICES if base in trainable and base in scored]


def choose_base(x: "Experiment", checkpoint: "Checkpoint", cache: Path, memory: int | None) -> dict[str, str]:
    """Return the base and the reason, for a GPU with so many bytes of memory; None: no GPU."""
    bases = possible_bases(x)
    if len(bases) == 1:
        return {"quantise": bases[0], "why": "the recipe or the metric supports no other"}
    if memory is None:
        return {"quantise": "none", "why": "no GPU is used"}
    choices: dict[Quantise, Experiment] = {base: with_quantise(x, base) for base in bases}
    asked = {
        "format": FORMAT,
        "model": checkpoint.digest,
        "dtype": x.model.dtype,
        "counts": [each.prune.count(pruner_sizes(each, checkpoint)) for each in choices.values()],
        "unit": x.prune.unit,
        "heal": [type(x.heal).__name__, recipe_knobs(x.heal)],
        "dense": needs_dense_model(x),
        "memory": memory,
        "processes": ranks.world_size(),
    }
    key = store.content_digest(asked)
    return store.cached_value(cache / "bases" / key, lambda: compare_bases(choices, checkpoint, memory))


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


@cache
def gpu_memory(device: str) -> int | None:
    """Return the bytes of memory of the GPU, of the smallest if this process sees several; None without a usable GPU.

    ``nvidia-smi`` answers in less time than the import of torch takes; torch is the fallback.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    kinds = ("nvidia[0-9]*", "dxg", "kfd")
    if device == "cpu" or seen in ("", "-1") or not any(list(Path("/dev").glob(kind)) for kind in kinds):
        return None
    which = ["-i", seen] if seen else []
    ask = ["nvidia-smi", *which, "--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
        sizes = [int(size) << 20 for size, mode in (line.split(", ") for line in lines) if mode.strip() != "Enabled"]
        if len(sizes) == len(lines) > 0:
            return min(sizes)
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    import torch

    every = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(each).total_memory for each in every), default=None)
