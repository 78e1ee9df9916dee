"""Fits a healing run into memory: finds the fastest micro-batch and gradient checkpointing.

Pruning frees memory. Spent on activations, it saves the second forward pass of gradient checkpointing, which is a third
of the work; spent on larger micro-batches, it spreads the dequantisation of 4-bit weights over more tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from depthcut.heal.training.model_memory import (
    activation_width,
    gradient_layers,
    hidden_size,
    largest_linear_size,
    sharded_model_bytes,
    training_state_bytes,
)
from depthcut.heal.training.objective import CHUNK_BYTES, base_model
from depthcut.heal.training.recipe import TrainingRecipe
from depthcut.runtime import devices, ranks

ACTIVATION_FACTOR = {False: 1.2, True: 0.9}
"""Bytes that a layer keeps for its backward pass, divided by its linear layers' inputs and outputs; by compiled.
Measured on an H100 (Llama-2-7B and 70B shapes): 1.15 and 0.89. Dropout before the adapters adds to it."""
DROPOUT_FACTOR = 1.2
MIXED_PRECISION_BYTES = 16
"""Further bytes per token and dimension that a layer keeps if its stream has 32 bits and its products 16."""
SQUARED_ERROR_BYTES = 18
"""Bytes per token and dimension of a squared error: both streams and the intermediate results, in float32."""
RESERVED_FRACTION = 0.06
"""Fraction of the free memory reserved for fragmentation and for libraries."""
DEQUANTISE_TOKENS = 350
"""Tokens whose products with a 4-bit weight cost as much as dequantising it (an H100: 4.5 bytes moved per weight)."""
PASS_OVERHEAD_TOKENS = 250
"""Fixed cost of a pass, in tokens: launching kernels, filling the GPU."""


@dataclass(frozen=True)
class Layout:
    """Settings that change the speed and memory of a healing run, but not its result.

    Attributes:
        micro_batch: sequences per forward pass.
        recompute: number of layers with gradient checkpointing.
        compiled: whether layers are compiled.
    """

    micro_batch: int
    recompute: int
    compiled: bool


@dataclass(frozen=True)
class MemoryPlan:
    """Memory that a run needs and has, in bytes.

    Attributes:
        layers: L, the number of layers that a gradient passes through.
        length: tokens per sequence.
        stream: bytes of one token between two layers.
        kept: bytes of one token that one layer keeps, not compiled and compiled.
        ends: bytes of one token before and after the layers, without logits.
        fixed: gradients, the optimiser's state, chunks of logits, copies of weights; for a sharded model, the weights.
        free: memory available for all of these.
        packed: whether the base has 4-bit weights.
    """

    layers: int
    length: int
    stream: int
    kept: tuple[int, int]
    ends: int
    fixed: int
    free: int
    packed: bool

    @classmethod
    def of(cls, model: nn.Module, recipe: TrainingRecipe, device: str, mixed: bool = False) -> "MemoryPlan":
        """Measure ``model`` as it lies on ``device``; ``mixed``: products are in bfloat16, whatever the weights."""
        stack, base = gradient_layers(model, recipe.runs_all), base_model(model)
        stream = hidden_size(base) * base.dtype.itemsize
        size = 2 if mixed else base.dtype.itemsize
        wide = (
            max(activation_width(layer) for layer in stack) * size * (DROPOUT_FACTOR if recipe.adapter_dropout else 1)
        )
        more = recipe.length * size if recipe.packing == "separate" else 0  # a row of the mask, which attention keeps
        more += MIXED_PRECISION_BYTES * hidden_size(base) if size < base.dtype.itemsize else 0
        packed = getattr(base, "is_loaded_in_4bit", False)
        unpacked = 4 * max(largest_linear_size(layer) for layer in stack) if packed else 0
        weights = sharded_model_bytes(model) if recipe.sharded else 0
        return cls(
            layers=len(stack),
            length=recipe.length,
            stream=stream,
            kept=(int(ACTIVATION_FACTOR[False] * wide) + more, int(ACTIVATION_FACTOR[True] * wide) + more),
            ends=4 * stream + (0 if recipe.runs_all else SQUARED_ERROR_BYTES * hidden_size(base)),
            fixed=training_state_bytes(model, recipe, mixed) + unpacked + recipe.logits * CHUNK_BYTES + weights,
            free=available_memory(device),
            packed=packed,
        )

    def needs(self, layout: Layout) -> int:
        """Return the bytes at the peak."""
        tokens = layout.micro_batch * self.length
        kept = self.kept[layout.compiled]
        again = kept if layout.recompute else 0  # the layer whose activations are being recomputed
        streams = layout.recompute * self.stream + self.ends
        return self.fixed + tokens * ((self.layers - layout.recompute) * kept + again + streams)

    def cost(self, layout: Layout) -> float:
        """Return the time per token, in forward passes through one layer, without the head."""
        again = layout.recompute / self.layers
        tokens = layout.micro_batch * self.length
        return (2 + again) * (1 + (DEQUANTISE_TOKENS * self.packed + PASS_OVERHEAD_TOKENS) / tokens)

    def fits(self, layout: Layout) -> bool:
        """Return whether the layout fits, with a reserve."""
        return self.needs(layout) <= (1 - RESERVED_FRACTION) * self.free


def choose_layouts(room: MemoryPlan, recipe: TrainingRecipe, compiled: bool) -> list[Layout]:
    """Return the layouts to try, the best first; the others are for when memory runs out nevertheless.

    Settings of the recipe are not changed.
    """
    share = recipe.batch // ranks.world_size()
    sizes = [n for n in range(share, 0, -1) if share % n == 0] if recipe.micro_batch == "auto" else [recipe.micro_batch]
    asked = {"auto": range(room.layers + 1), "none": (0,), "all": (room.layers,)}
    given = recipe.recompute
    counts = asked[given] if isinstance(given, str) else (min(given, room.layers),)
    every = [Layout(size, count, compiled) for size in sizes for count in counts]
    ranked = sorted((each for each in every if room.fits(each)), key=room.cost)
    return thin_layouts(ranked, room) or [min(every, key=room.needs)]


def thin_layouts(ranked: Sequence[Layout], room: MemoryPlan) -> list[Layout]:
    """Return the layouts whose activations need at least a tenth less than those of the one tried before."""
    found: list[Layout] = []
    for each in ranked:
        if not found or room.needs(each) - room.fixed < 0.9 * (room.needs(found[-1]) - room.fixed):
            found.append(each)
    return found


def describe_layout(layout: Layout, room: MemoryPlan, recipe: TrainingRecipe) -> str:
    """Return the chosen layout and its memory in one line."""
    steps = recipe.batch // (layout.micro_batch * ranks.world_size())
    again = {0: "no layer", room.layers: f"all {room.layers} layers"}
    parts = [
        f"{layout.micro_batch} x {room.length} tokens per pass, {steps} {'passes' if steps > 1 else 'pass'} per step",
        f"gradient checkpointing: {again.get(layout.recompute, f'{layout.recompute} of {room.layers} layers')}",
    ]
    if layout.compiled:
        parts.append("layers compiled")
    need = f"about {room.needs(layout) / devices.GIB:.1f} GiB of {room.free / devices.GIB:.1f} free"
    return f"healing: {', '.join(parts)}; {need}"


def available_memory(device: str) -> int:
    """Return the bytes that this process may take on ``device``; several processes must arrive at the same layout."""
    if not device.startswith("cuda"):
        return devices.free_memory(device) // 2
    if ranks.world_size() > 1:
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
