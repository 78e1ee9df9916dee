"""Importance of groups of weights from the adapters' gradients alone (LoRAPrune, arXiv:2305.18403, eqs. 10, 11).

Linear layers are processed one at a time, in strips of rows, so neither a weight gradient nor a dequantised base model
is ever held. As in the published code, each matrix's groups are normalised to length one before they are summed;
otherwise the largest matrix would decide.

Legend: O outputs, I inputs, R rank, G groups.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from depthcut.model.decoder import lora_gradients
from depthcut.model.surgery.width.groups import WidthGroups

STRIP_WEIGHTS = 2**24  # weights per strip


def group_importance(layer: nn.Module, groups: WidthGroups) -> Tensor:
    """Return the importance of each group of a layer, float64 G: its normalised importance, summed over matrices."""
    parts = [linear_importance(linear, axis, groups.count) for linear, axis in groups.linears(layer)]
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack([part_G / part_G.norm().clamp_min(tiny) for part_G in parts]).sum(0)


@torch.no_grad()
def linear_importance(linear: Any, axis: int, count: int) -> Tensor:
    """Return the importance of a matrix's weights, summed over each group, float64 G.

    Args:
        linear: a layer with an adapter whose A and B hold gradients. Without gradients, because no token reached the
            layer, the result is zero.
        axis: the groups divide its outputs (0) or its inputs (1).
        count: G.
    """
    assert isinstance(linear, LoraLayer)
    (name,) = linear.active_adapters
    factors: tuple[Any, Any] = linear.lora_A[name], linear.lora_B[name]
    a_RI, b_OR = (factor.weight for factor in factors)
    w_OI = lora_gradients.dequantised_weight(linear.base_layer)
    if a_RI.grad is None or b_OR.grad is None:
        return torch.zeros(count, dtype=torch.float64, device=w_OI.device)
    # The update of W is alpha / r times B A.
    scale, size = linear.scaling[name], max(1, STRIP_WEIGHTS // w_OI.shape[1])
    rows = zip(*(each.split(size) for each in (w_OI, b_OR, b_OR.grad)), strict=True)
    sums = [
        lora_gradients.weight_importance(
            w.float(), a_RI.float(), scale * b.float(), a_RI.grad.float(), scale * grad_b.float()
        ).sum(1 - axis)
        for w, b, grad_b in rows
    ]
    along = torch.cat(sums) if axis == 0 else torch.stack(sums).sum(0)
    return along.double().view(count, -1).sum(1)


class MovingAverage:
    """Moving average of group importance: ``G_t = smoothing G_(t-1) + (1 - smoothing) g_t``, from zero.

    Attributes:
        smoothing: lambda, 0.9 in the published code.
        values: the averages by name, float64 G.
        skipped: number of updates that were skipped because they held a number that is not finite.
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing
        self.values: dict[str, Tensor] = {}
        self.skipped = 0

    def update(self, found: dict[str, Tensor]) -> None:
        """Add the importance of the groups at one step."""
        if not all(torch.stack([each.isfinite().all() for each in found.values()]).tolist()):
            self.skipped += 1
            return
        for name, new_G in found.items():
            old_G = self.values.get(name, torch.zeros_like(new_G)).to(new_G.device)
            self.values[name] = self.smoothing * old_G + (1 - self.smoothing) * new_G
