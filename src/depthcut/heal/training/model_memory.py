"""Memory that a model takes in training, read off its modules."""

import math

from torch import nn
from transformers import PreTrainedModel

from depthcut.heal.training.objective import base_model, head_parameters
from depthcut.heal.training.recipe import TrainingRecipe
from depthcut.model.checkpoint.sharded import ShardedLayers
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import linear
from depthcut.runtime import ranks


def gradient_layers(model: nn.Module, runs_all: bool = True) -> list[nn.Module]:
    """Return the layers that a gradient passes through: from the first trained one, or all, to the last one run."""
    stack = list(decoder_layers.layer_list(model))
    trained = [index for index, layer in enumerate(stack) if any(each.requires_grad for each in layer.parameters())]
    inside = {id(each) for layer in stack for each in layer.parameters()}
    below = any(
        each.requires_grad and id(each) not in inside for each in decoder_layers.decoder_stack(model).parameters()
    )
    first = 0 if below or not trained else trained[0]
    return stack[first:] if runs_all or not trained else stack[first : trained[-1] + 1]


def frozen_prefix_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers before those, which run without gradient."""
    stack = list(decoder_layers.layer_list(model))
    return stack[: len(stack) - len(gradient_layers(model))]


def training_state_bytes(model: nn.Module, recipe: TrainingRecipe, mixed: bool) -> int:
    """Return the bytes of gradients, optimiser state, and copies for products and for the head's gradient."""
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
    """Return the bytes that a sharded model takes in this process; three layers are whole or in transit."""
    layers = [
        sum(each.numel() * each.element_size() for each in layer.parameters())
        for layer in decoder_layers.layer_list(model)
    ]
    if isinstance(decoder_layers.layer_list(model), ShardedLayers):
        return 3 * max(layers)
    everything = sum(each.numel() * each.element_size() for each in model.parameters())
    return everything - sum(layers) + sum(layers) // ranks.world_size() + 3 * max(layers)


def activation_width(layer: nn.Module) -> int:
    """Return the numbers per token that the linear layers of a decoder layer read and write, each counted once."""
    pairs = [linear.linear_features(each) for each in linear.linear_layers(layer).values()] or [(0, 0)]
    big = [pair for pair in pairs if min(pair) >= max(max(pair) for pair in pairs) // 32]  # adapters are small
    return sum(out for _, out in big) + max(into for into, _ in big) + 4 * min(into for into, _ in big)


def largest_linear_size(layer: nn.Module) -> int:
    """Return the number of weights of the largest linear layer."""
    return max((math.prod(linear.linear_features(each)) for each in linear.linear_layers(layer).values()), default=0)


def hidden_size(base: PreTrainedModel) -> int:
    """Return D, the width of the stream."""
    return decoder_layers.text_config(base.config).hidden_size
