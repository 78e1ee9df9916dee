"""Groups switched off: what they give is multiplied by 0, what stays by 1, where the layer's last matrix reads it.

That is the model that slicing leaves, to rounding: what a head or a channel gives reaches the stream by this matrix
alone, and what its own weights compute before that is lost. No gradient comes back to those either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.model.decoder import layers
from depthcut.model.surgery.width.groups import WidthGroups, layer_groups
from depthcut.model.surgery.width.widths import GroupKey, Widths


class Gate:
    """Stands in front of a linear layer, as a hook, and multiplies its input by the mask of ``count`` groups.

    The mask is one tensor, changed in place: a compiled layer sees the change.
    """

    def __init__(self, linear: Any, count: int) -> None:
        self.mask_I = torch.ones(linear.in_features, device=next(linear.parameters()).device)
        self.kept = tuple(range(count))
        self.count = count
        self.handle = linear.register_forward_pre_hook(self)

    def __call__(self, linear: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Multiply."""
        del linear
        x: Tensor = args[0]
        return (x * self.mask_I.to(x.dtype), *args[1:])

    def keep(self, groups: Sequence[int]) -> None:
        """Let these groups through, and no others."""
        self.kept = tuple(groups)
        on_GC = self.mask_I.view(self.count, -1)
        on_GC.zero_()
        on_GC[list(groups)] = 1


class Masks:
    """The gates of some layers of a model, all open at first."""

    def __init__(self, stack: Sequence[nn.Module], places: Mapping[GroupKey, WidthGroups]) -> None:
        self.gates = {place: Gate(each.output_module(stack[place[0]]), each.count) for place, each in places.items()}

    def keep(self, kept: Mapping[GroupKey, Sequence[int]]) -> None:
        """Let only these groups through, at each of these places."""
        for place, groups in kept.items():
            self.gates[place].keep(groups)

    def unmask(self) -> None:
        """Let all through."""
        for gate in self.gates.values():
            gate.keep(range(gate.count))

    def remove(self) -> None:
        """Take the gates away."""
        for gate in self.gates.values():
            gate.handle.remove()


def mask_model(model: nn.Module, widths: Widths) -> Masks:
    """Mask a model for good: its quantised weights cannot be sliced."""
    stack, kept = list(layers.layer_list(model)), widths.narrowed_groups()
    masks = Masks(stack, {(number, kind): layer_groups(stack[number])[kind] for number, kind in kept})
    masks.keep(kept)
    return masks
