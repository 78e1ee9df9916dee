"""Linear layers of a decoder: the matrices that adapters target, and the weights that they leave out.

Legend: O outputs, I inputs.
"""

from collections.abc import Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Modules = Literal["ffn", "attention", "all"]
NEGLIGIBLE = 0.01
"""Upper bound on the fraction of the weights in a router, or in the kernel of a convolution."""


def is_linear(module: nn.Module) -> bool:
    """Return whether ``module`` is a linear layer: ``nn.Linear``, also of bitsandbytes, or GPT-2's ``Conv1D``."""
    return isinstance(module, nn.Linear | Conv1D)


def linear_layers(part: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers in ``part`` by name."""
    return {name: module for name, module in part.named_modules() if is_linear(module)}


def linear_features(linear: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    if isinstance(linear, Conv1D):
        inputs, outputs = linear.weight.shape
        return int(inputs), int(outputs)
    return int(linear.in_features), int(linear.out_features)


def orient_weight(linear: Any, weight: Tensor) -> Tensor:
    """Return ``weight``, or its gradient, as O x I; ``Conv1D`` stores I x O."""
    return weight.T if isinstance(linear, Conv1D) else weight


def restore_conv1d(model: nn.Module, like: nn.Module) -> None:
    """Turn an ``nn.Linear`` left by dequantisation back into a ``Conv1D`` wherever ``like`` has one.

    Args:
        model: changed in place.
        like: the same model as its config builds it, on the meta device.
    """
    found = dict(model.named_modules())
    for name, each in like.named_modules():
        dense = found.get(name)
        if isinstance(each, Conv1D) and isinstance(dense, nn.Linear):
            inputs, outputs = linear_features(dense)
            with torch.device("meta"):
                turned = Conv1D(outputs, inputs)
            turned.weight = nn.Parameter(dense.weight.detach().T.contiguous(), requires_grad=False)
            turned.bias = dense.bias
            model.set_submodule(name, turned)


def select_linear_names(names: Iterable[str], modules: Modules) -> list[str]:
    """Return those of ``names`` within a decoder layer that are in its attention, outside it (``ffn``), or all."""
    wanted = {"all": (True, False), "attention": (True,), "ffn": (False,)}[modules]
    return [name for name in names if ("attn" in name or "attention" in name) in wanted]


def weight_matrices(part: nn.Module, modules: Modules = "all") -> dict[str, nn.Parameter]:
    """Return the parameters in ``part`` that are matrices, or stacks of matrices such as fused experts, by name."""
    found = {name: each for name, each in part.named_parameters() if each.ndim > 1}
    return {name: found[name] for name in select_linear_names(found, modules)}


def uncovered_share(parts: Iterable[dict[str, nn.Parameter]], covered: Collection[int]) -> tuple[float, list[str]]:
    """Return the fraction of weights that is not covered, and the names of those, except any below ``NEGLIGIBLE``.

    Args:
        parts: for each decoder layer, its matrices by their names in it.
        covered: ids of the covered matrices.
    """
    total, sizes = 0, dict[str, int]()
    for part in parts:
        for name, each in part.items():
            total += each.numel()
            if id(each) not in covered:
                sizes[name] = sizes.get(name, 0) + each.numel()
    large = [name for name, size in sizes.items() if size >= NEGLIGIBLE * total]
    return sum(sizes.values()) / max(total, 1), sorted(large, key=lambda name: -sizes[name])
