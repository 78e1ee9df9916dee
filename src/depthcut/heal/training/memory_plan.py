"""How a healing run fits the memory: sequences a pass, layers that recompute; the quickest that has room.

Pruning frees memory. Spent on activations it saves the second forward pass of recomputation, which is a third of the
work; spent on longer passes it spreads the unpacking of 4-bit weights over more tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from depthcut.heal.training.objective import CHUNK_BYTES, base_model, head_parameters
from depthcut.heal.training.recipe import TrainingRecipe
from depthcut.model.checkpoint.sharded import ShardedLayers
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import linear
from depthcut.runtime import devices, ranks

ACTIVATION_FACTOR = {False: 1.2, True: 0.9}
"""Bytes that a layer keeps for its backward pass, over those of what its linear layers read and write; if compiled.
Measured on an H100 (Llama-2-7B and 70B shapes): 1.15 and 0.89. Dropout before the adapters adds to it."""
DROPOUT_FACTOR = 1.2
MIXED_PRECISION_BYTES = 16
"""Bytes a token and dimension that a layer keeps besides, where its stream is in 32 bits and its products in 16."""
SQUARED_ERROR_BYTES = 18
"""Bytes a token and dimension of a squared error: both streams and what lies between them, in float32."""
RESERVED_FRACTION = 0.06
"""Share of the free memory that is left alone: fragments, and what libraries take for themselves."""
DEQUANTISE_TOKENS = 350
"""Unpacking a 4-bit weight costs as much as this many tokens' products with it (an H100: 4.5 bytes a weight moved)."""
PASS_OVERHEAD_TOKENS = 250
"""What a pass costs beside its tokens, in tokens: starting kernels, filling the device."""


@dataclass(frozen=True)
class Layout:
    """What changes a healing run's speed and memory, and not its result.

    Attributes:
        micro_batch: sequences a forward pass.
        recompute: how many of the layers compute their activations again in the backward pass.
        compiled: whether layers are compiled.
    """

    micro_batch: int
    recompute: int
    compiled: bool


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs and has, in bytes.

    Attributes:
        layers: L, those that a gradient goes through.
        length: tokens a sequence.
        stream: bytes of one token between two layers.
        kept: bytes of one token that one layer keeps, not compiled and compiled.
        ends: bytes of one token in front of the layers and behind them, logits aside.
        fixed: gradients, the optimiser's state, chunks of logits, copies of weights; of a model in shares, the weights.
        free: what there is for all of that.
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
        """Measure ``model``, as it lies on ``device``; ``mixed``: products are in bfloat16, of whatever weights."""
        stack, base = gradient_layers(model, recipe.runs_all), base_model(model)
        stream = hidden_size(base) * base.dtype.itemsize
        size = 2 if mixed else base.dtype.itemsize
        wide = (
            max(activation_width(layer) for layer in stack)
            * size
            * (DROPOUT_FACTOR if getattr(recipe, "dropout", 0) else 1)
        )
        more = recipe.length * size if recipe.packing == "separate" else 0  # a row of the mask, as attention keeps it
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
        """Bytes at the peak."""
        tokens = layout.micro_batch * self.length
        kept = self.kept[layout.compiled]
        again = kept if layout.recompute else 0  # the one whose activations are there for the second time
        streams = layout.recompute * self.stream + self.ends
        return self.fixed + tokens * ((self.layers - layout.recompute) * kept + again + streams)

    def cost(self, layout: Layout) -> float:
        """Time a token, in forward passes through one layer; of the head nothing."""
        again = layout.recompute / self.layers
        tokens = layout.micro_batch * self.length
        return (2 + again) * (1 + (DEQUANTISE_TOKENS * self.packed + PASS_OVERHEAD_TOKENS) / tokens)

    def fits(self, layout: Layout) -> bool:
        """Whether there is room, with something to spare."""
        return self.needs(layout) <= (1 - RESERVED_FRACTION) * self.free


def choose_layouts(room: MemoryPlan, recipe: TrainingRecipe, compiled: bool) -> list[Layout]:
    """The layouts to try, the best first; those behind it are for when memory runs out all the same.

    What the recipe sets is not changed.
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
    """Of the layouts those whose activations need a tenth less than those of the one tried before."""
    found: list[Layout] = []
    for each in ranked:
        if not found or room.needs(each) - room.fixed < 0.9 * (room.needs(found[-1]) - room.fixed):
            found.append(each)
    return found


def describe_layout(layout: Layout, room: MemoryPlan, recipe: TrainingRecipe) -> str:
    """What was chosen, and why, in a line."""
    steps = recipe.batch // (layout.micro_batch * ranks.world_size())
    again = {0: "no layer", room.layers: f"all {room.layers} layers"}
    parts = [
        f"{layout.micro_batch} x {room.length} tokens a pass, {steps} {'passes' if steps > 1 else 'pass'} a step",
        f"gradient checkpointing: {again.get(layout.recompute, f'{layout.recompute} of {room.layers} layers')}",
    ]
    if layout.compiled:
        parts.append("layers compiled")
    need = f"about {room.needs(layout) / devices.GIB:.1f} GiB of {room.free / devices.GIB:.1f} free"
    return f"healing: {', '.join(parts)}; {need}"


def available_memory(device: str) -> int:
    """Bytes that this process may take on ``device``; several processes must come to the same layout."""
    if not device.startswith("cuda"):
        return devices.free_memory(device) // 2
    if ranks.world_size() > 1:
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def gradient_layers(model: nn.Module, runs_all: bool = True) -> list[nn.Module]:
    """The layers that a gradient goes through: from the first that is trained on, or all; to the last that is run."""
    stack = list(decoder_layers.layer_list(model))
    trained = [index for index, layer in enumerate(stack) if any(each.requires_grad for each in layer.parameters())]
    inside = {id(each) for layer in stack for each in layer.parameters()}
    below = any(
        each.requires_grad and id(each) not in inside for each in decoder_layers.decoder_stack(model).parameters()
    )
    first = 0 if below or not trained else trained[0]
    return stack[first:] if runs_all or not trained else stack[first : trained[-1] + 1]


def frozen_prefix_layers(model: nn.Module) -> list[nn.Module]:
    """The layers in front of those: they run without gradient."""
    stack = list(decoder_layers.layer_list(model))
    return stack[: len(stack) - len(gradient_layers(model))]


def training_state_bytes(model: nn.Module, recipe: TrainingRecipe, mixed: bool) -> int:
    """Bytes of gradients, of the optimiser's state, and of the copies that products and the head's gradient take."""
    trained = [each for each in model.parameters() if each.requires_grad]
    head = {id(each) for each in head_parameters(base_model(model))}
    total = 0
    for each in trained:
        moments = 2 * each.element_size() if recipe.optimiser == "adamw" else 2
        again = 2 * each.element_size() if id(each) in head else 0  # a chunk's gradient, and the sum of the chunks'
        cast = 2 if mixed and each.ndim > 1 else 0
        total += each.numel() * (each.element_size() + moments + again + cast)
    return total // (ranks.world_size() if recipe.sharded else 1)


def sharded_model_bytes(model: nn.Module) -> int:
    """Bytes that a model of whose layers this process holds a share still takes; three are whole, or on their way."""
    layers = [
        sum(each.numel() * each.element_size() for each in layer.parameters())
        for layer in decoder_layers.layer_list(model)
    ]
    if isinstance(decoder_layers.layer_list(model), ShardedLayers):
        return 3 * max(layers)
    everything = sum(each.numel() * each.element_size() for each in model.parameters())
    return everything - sum(layers) + sum(layers) // ranks.world_size() + 3 * max(layers)


def activation_width(layer: nn.Module) -> int:
    """Numbers a token that the linear layers of a decoder layer read and write, each counted once."""
    pairs = [linear.linear_features(each) for each in linear.linear_layers(layer).values()] or [(0, 0)]
    big = [pair for pair in pairs if min(pair) >= max(max(pair) for pair in pairs) // 32]  # adapters are small
    return sum(out for _, out in big) + max(into for into, _ in big) + 4 * min(into for into, _ in big)


def largest_linear_size(layer: nn.Module) -> int:
    """Weights of the largest linear layer."""
    return max((math.prod(linear.linear_features(each)) for each in linear.linear_layers(layer).values()), default=0)


def hidden_size(base: PreTrainedModel) -> int:
    """D, the width of the stream."""
    return decoder_layers.text_config(base.config).hidden_size
