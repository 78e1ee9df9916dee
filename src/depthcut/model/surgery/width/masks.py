"""Masking of pruned groups: the input of the layer's output projection is multiplied by 0 for them, by 1 for others.

To rounding, this is the sliced model: a head or a channel reaches the residual stream through this matrix alone, and
its own computations have no other effect. No gradient reaches its weights either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.model.decoder import layers
from depthcut.model.surgery.width.groups import WidthGroups, layer_groups
from depthcut.model.surgery.width.widths import GroupKey, Widths


class Gate:
    """Pre-hook of a linear layer that multiplies its input by the mask of ``count`` groups.

    The mask is one tensor, changed in place: a compiled layer sees the change.
    """

    def __init__(self, linear: Any, count: int) -> None:
        self.mask_I = torch.ones(linear.in_features, device=next(linear.parameters()).device)
        self.kept = tuple(range(count))
        self.count = count
        self.handle = linear.register_forward_pre_hook(self)

    def __call__(self, linear: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Multiply the input by the mask."""
        del linear
        x: Tensor = args[0]
        return (x * self.mask_I.to(x.dtype), *args[1:])

    def keep(self, groups: Sequence[int]) -> None:
        """Keep these groups and mask all others."""
        self.kept = tuple(groups)
        on_GC = self.mask_I.view(self.count, -1)
        on_GC.zero_()
        on_GC[list(groups)] = 1


class Masks:
    """Gates of some layers of a model, all unmasked at first."""

    def __init__(self, stack: Sequence[nn.Module], places: Mapping[GroupKey, WidthGroups]) -> None:
        self.gates = {place: Gate(each.output_module(stack[place[0]]), each.count) for place, each in places.items()}

    def keep(self, kept: Mapping[GroupKey, Sequence[int]]) -> None:
        """Keep only these groups in each of these layers."""
        for place, groups in kept.items():
            self.gates[place].keep(groups)

    def unmask(self) -> None:
        """Unmask all groups."""
        for gate in self.gates.values():
            gate.keep(range(gate.count))

    def remove(self) -> None:
        """Remove the gates."""
        for gate in self.gates.values():
            gate.handle.remove()


def mask_model(model: nn.Module, widths: Widths) -> Masks:
    """Mask a model permanently, because its quantised weights cannot be sliced."""
    stack, kept = list(layers.layer_list(model)), widths.narrowed_groups()
    masks = Masks(stack, {(number, kind): layer_groups(stack[number])[kind] for number, kind in kept})
    masks.keep(kept)
    return masks
