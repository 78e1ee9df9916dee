"""``model.quantise=auto``: unquantised weights if they fit on the GPU and train faster, otherwise NF4.

The choice is made before any digest is computed. It depends only on values that are constant on a machine: the model,
the cut, the recipe and the size of the GPU's memory, not its free part. The memory planner of healing gives the
estimate, which is cached; a finished point then needs no torch.
"""

import dataclasses
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.heal.lora import Lora
from depthcut.heal.qlora import QLora
from depthcut.runtime import ranks, store, verified
from depthcut.study.memory_estimate import compare_bases, needs_dense_model, pruner_sizes

if TYPE_CHECKING:
    from depthcut.config.experiment import Experiment
    from depthcut.heal import Heal
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.decoder.quantisation import Quantise

FORMAT = 1
CHOICES: "tuple[Quantise, ...]" = ("none", "nf4")


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
    return verified.cached_value(cache / "bases" / key, lambda: compare_bases(choices, checkpoint, memory))


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
