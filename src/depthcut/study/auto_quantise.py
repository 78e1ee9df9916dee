"""What ``model.quantise=auto`` stands for: weights as they are where that fits the GPU and is quicker, else NF4.

It is settled before anything is named by its content, from what does not change between two runs on a machine: the
model, the cut, the recipe and the size of the GPU's memory, not what is free of it. The planner of the healing gives
the estimate; it is kept in the cache, so that a point that is done needs no torch for it.
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
from depthcut.runtime import ranks, store
from depthcut.runtime.devices import GIB

if TYPE_CHECKING:
    from depthcut.config.experiment import Experiment
    from depthcut.heal import Heal
    from depthcut.model.checkpoint.loading import Quantise
    from depthcut.study.lab import Lab

FORMAT = 1
CHOICES: "tuple[Quantise, ...]" = ("none", "nf4")
CONTEXT = GIB  # of the GPU's memory, for CUDA itself and the libraries


def settled(lab: "Lab") -> "Lab":
    """The lab with a base in place of ``auto``, in its config too, which the record holds."""
    if not lab.experiment.model.undecided:
        return lab
    found = choose(lab, gpu(lab.experiment.device))
    words = f"model.quantise=auto: {found['quantise']} here; {found['why']}"
    base: Any = found["quantise"]
    return dataclasses.replace(lab, experiment=on(lab.experiment, base), settled=words)


def on(x: "Experiment", base: "Quantise") -> "Experiment":
    """The experiment on this base. LoRA and QLoRA are one recipe; which of them it is the base says."""
    composed = {**x.composed, "model": {**x.composed["model"], "quantise": base}}
    heal: Heal = x.heal
    if isinstance(heal, Lora | QLora):
        kind: Any = Lora if base == "none" else QLora
        heal = kind(**knobs(heal))
        composed["heal"] = {**composed["heal"], "_target_": f"{kind.__module__}.{kind.__name__}"}
    return dataclasses.replace(x, model=dataclasses.replace(x.model, quantise=base), heal=heal, composed=composed)


def knobs(heal: "Heal") -> dict[str, Any]:
    """The recipe's fields."""
    return {each.name: getattr(heal, each.name) for each in dataclasses.fields(heal)}


def possible(x: "Experiment") -> "list[Quantise]":
    """The bases that the recipe can train on and the metric can score; FSDP2 corrupts quantised ones."""
    if getattr(x.heal, "strategy", "ddp") == "fsdp":
        return ["none"]
    trainable = CHOICES if isinstance(x.heal, Lora | QLora) else x.heal.bases
    scored = x.metric.bases if x.prune.reads_scores else CHOICES
    return [base for base in CHOICES if base in trainable and base in scored]


def choose(lab: "Lab", memory: int | None) -> dict[str, str]:
    """The base, and why it is taken, on a GPU of so many bytes; None: there is none."""
    x = lab.experiment
    bases = possible(x)
    if len(bases) == 1:
        return {"quantise": bases[0], "why": "the recipe or the metric takes no other"}
    if memory is None:
        return {"quantise": "none", "why": "it runs on no GPU"}
    labs: dict[Quantise, Lab] = {base: dataclasses.replace(lab, experiment=on(x, base)) for base in bases}
    asked = {
        "format": FORMAT,
        "model": lab.checkpoint.digest,
        "dtype": x.model.dtype,
        "counts": [x.prune.count(each.shape) for each in labs.values()],
        "unit": x.prune.unit,
        "heal": [type(x.heal).__name__, knobs(x.heal)],
        "dense": needs_dense(x),
        "memory": memory,
        "processes": ranks.world(),
    }
    return lab.kept("bases", store.digest(asked), lambda: weighed(labs, memory))


def weighed(labs: "dict[Quantise, Lab]", memory: int) -> dict[str, str]:
    """Choose by what each base needs, and how quick healing is on it."""
    plain, packed = (Estimate.of(each, memory - CONTEXT) for each in labs.values())
    need, there = f"{(plain.need + CONTEXT) / GIB:.1f} GiB", f"{memory / GIB:.1f}"
    dtype = labs["none"].experiment.model.dtype
    if not plain.fits:
        why = f"in {dtype} it needs about {need}, and the GPU has {there}"
        return {"quantise": "nf4", "why": why}
    if packed.fits and packed.cost < plain.cost:
        why = f"{dtype} leaves less room for activations: about {plain.cost / packed.cost - 1:.0%} slower"
        return {"quantise": "nf4", "why": why}
    return {"quantise": "none", "why": f"{dtype} fits, with about {need} of {there}, and is quicker than 4 bits"}


@dataclass(frozen=True)
class Estimate:
    """What a run needs on a base.

    Attributes:
        need: bytes at the peak.
        fits: whether there is room.
        cost: time a token, as :meth:`depthcut.heal.training.memory_plan.Room.cost`; 0 where nothing is trained.
    """

    need: int
    fits: bool
    cost: float

    @classmethod
    def of(cls, lab: "Lab", memory: int) -> "Estimate":
        """Estimate it for the lab's experiment."""
        from depthcut.heal.training import memory_plan

        x = lab.experiment
        shape, n = lab.weigh(x.prune.unit), x.prune.count(lab.shape)
        whole = shape.whole["weight_bytes"]
        left = whole - sum(sorted(shape.weight_bytes)[:n])
        if needs_dense(x) and whole > (1 - memory_plan.SPARE) * memory:
            return cls(whole, False, 0)
        if not x.heal.trains:
            return cls(left, left <= (1 - memory_plan.SPARE) * memory, 0)
        held = left + (whole if getattr(x.heal, "teacher", "") == "live" else 0)
        space = room_of(lab, n, memory - held)
        recipe: Any = x.heal
        layout = memory_plan.choose(space, recipe, compiled=recipe.compile is not False)[0]
        return cls(held + space.needs(layout), space.free > 0 and space.fits(layout), space.cost(layout))


def room_of(lab: "Lab", n: int, free: int) -> Any:
    """The planner's view of healing what is left without ``n`` units; adapters on all linear layers, at most."""
    import torch

    from depthcut.heal.training.memory_plan import Room
    from depthcut.model.decoder import layers as decoder_layers
    from depthcut.model.decoder import linear

    x = lab.experiment
    recipe: Any = x.heal
    bare: Any = decoder_layers.skeleton(lab.checkpoint.config).to(getattr(torch, x.model.dtype)).requires_grad_(False)
    bare.is_loaded_in_4bit = x.model.quantise == "nf4"
    space = Room.of(bare, recipe, "cpu")
    layers = space.layers - (n if x.prune.unit == "layer" else 0)
    widths = [sum(linear.features(each)) for each in linear.linear_layers(decoder_layers.layers(bare)[0]).values()]
    adapters = layers * recipe.rank * sum(widths)
    state = 2 + 4 + (2 if recipe.optimiser != "adamw" else 8)  # of each number, with its gradient
    return dataclasses.replace(space, layers=max(layers, 1), fixed=space.fixed + state * adapters, free=max(free, 0))


def needs_dense(x: "Experiment") -> bool:
    """Whether the whole model must be in memory at some time."""
    scored = x.prune.reads_scores and (x.stream == "never" or not x.metric.streams)
    return "dense" in x.stages or scored


@cache
def gpu(device: str) -> int | None:
    """Bytes of the GPU's memory, of the smallest where this process sees several; None: there is none to use.

    The driver's own tool says it in less time than torch takes to be imported. Where it cannot, torch does.
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
