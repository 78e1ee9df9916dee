"""Merging and removal of LoRA adapters, for export and for measuring a healed model as it would be exported."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn


def merged_weight(adapted: LoraLayer) -> Tensor:
    """Return the weight of a linear layer with its active adapter merged, in the dtype and layout of the weight."""
    weight: Tensor = adapted.get_base_layer().weight.data  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
    delta: Tensor = cast("Any", adapted).get_delta_weight(adapted.active_adapters[0])
    return (weight + delta).to(weight.dtype)


def merged_weights(layer: nn.Module) -> dict[str, Tensor]:
    """Return a decoder layer's weights by their usual names, with its adapters merged."""
    adapted = adapted_linears(layer)
    merged: dict[str, Tensor] = {}
    for name, tensor in layer.state_dict().items():
        owner = next((each for each in adapted if name.startswith(f"{each}.")), None)
        rest = name.removeprefix(f"{owner}.")
        if owner is None:
            merged[name] = tensor
        elif rest.startswith("base_layer."):
            merged[f"{owner}.{rest.removeprefix('base_layer.')}"] = tensor
    return merged | {f"{name}.weight": merged_weight(part) for name, part in adapted.items()}


def merge_adapters(adapted: PeftModel) -> nn.Module:
    """Merge the adapters into the weights of their base, which is not quantised, and return the base."""
    with torch.no_grad():
        for part in adapted_linears(adapted).values():
            part.get_base_layer().weight.data = merged_weight(part)  # pyright: ignore[reportAttributeAccessIssue]
    return adapted.unload()  # pyright: ignore[reportCallIssue]


@contextmanager
def unwrapped_model(model: nn.Module) -> Generator[nn.Module]:
    """Inside the ``with`` block, give the base of ``model`` with its adapters removed and moved to the host.

    Merging them would change neither shapes nor, therefore, time or memory, so they are not merged. Modules that are
    trained in full, such as parts of shared layers, stay. A model without adapters, or with adapters on a quantised
    base, is given unchanged.
    """
    if not has_mergeable_adapters(model):
        yield model
        return
    base: Any = model.get_base_model()
    modules: list[tuple[str, Any]] = list(base.named_modules())
    adapted: dict[str, Any] = adapted_linears(base)
    trained = {name: part for name, part in modules if isinstance(part, ModulesToSaveWrapper)}
    try:
        for name, part in adapted.items():
            base.set_submodule(name, part.get_base_layer())
            move_adapters(part, "cpu")
        for name, part in trained.items():
            base.set_submodule(name, part.modules_to_save[part.active_adapters[0]])
        yield base
    finally:
        for name, part in {**adapted, **trained}.items():
            base.set_submodule(name, part)
        for part in adapted.values():
            move_adapters(part, part.get_base_layer().weight.device)


@contextmanager
def merged_model(model: nn.Module) -> Generator[nn.Module]:
    """Inside the ``with`` block, give the base of ``model`` with its adapters merged; then restore it to the bit.

    This equals the export, except that a model with adapters on a quantised base is given unchanged.
    """
    before: list[tuple[Any, Any]] = []
    try:
        if has_mergeable_adapters(model):
            for part in adapted_linears(model).values():
                weight: Any = part.get_base_layer().weight  # pyright: ignore[reportAttributeAccessIssue]
                before.append((weight, weight.data))
                with torch.no_grad():
                    weight.data = merged_weight(part)
        with unwrapped_model(model) as plain:
            yield plain
    finally:
        for weight, data in before:
            weight.data = data


def has_mergeable_adapters(model: nn.Module) -> TypeGuard[PeftModel]:
    """Return whether ``model`` has adapters on a base that is not quantised."""
    return isinstance(model, PeftModel) and getattr(model.get_base_model(), "hf_quantizer", None) is None


def adapted_linears(module: nn.Module) -> dict[str, LoraLayer]:
    """Return the linear layers that have adapters, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}


def move_adapters(layer: LoraLayer, device: Any) -> None:
    """Move a layer's adapters to ``device``, without the layer itself."""
    for name in layer.adapter_layer_names:
        if isinstance(adapters := getattr(layer, name, None), nn.Module):
            adapters.to(device)
