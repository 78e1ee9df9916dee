"""Importance of single weights from the gradients of LoRA adapters alone (LoRAPrune, arXiv:2305.18403, equation 10).

To first order, removing a weight sets ``(BA)_ij = -W_ij``. The gradient of ``(BA)_ij`` is taken to be the change that
one step of gradient descent at rate 1 makes: ``BA - (B - dB)(A - dA) = dB A + B dA - dB dA``. The published code takes
absolute values where the paper squares; this module follows the paper.

Legend: O outputs, I inputs, R rank.
"""

from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type
from torch import Tensor

from depthcut.model.decoder.linear import orient_weight


def weight_importance(w_OI: Tensor, a_RI: Tensor, b_OR: Tensor, grad_a_RI: Tensor, grad_b_OR: Tensor) -> Tensor:
    """Return equation 10 for each weight, O x I: ``[(dL/dB A + B dL/dA - dL/dB dL/dA)_ij (W + BA)_ij]^2``."""
    grad_OI = torch.addmm(grad_b_OR @ (a_RI - grad_a_RI), b_OR, grad_a_RI)
    return grad_OI.mul_(torch.addmm(w_OI, b_OR, a_RI)).square_()


def dequantised_weight(linear: Any) -> Tensor:
    """Return the weight of a linear layer, O x I, dequantised if it is quantised."""
    weight = linear.weight
    if get_bnb_param_type(weight):
        weight = dequantize_bnb_weight(weight, getattr(linear, "state", None))
    return orient_weight(linear, weight).detach()
