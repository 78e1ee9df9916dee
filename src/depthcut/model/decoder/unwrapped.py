"""Removal of adapter wrappers for timing: a healed model is measured as it would be exported."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def unwrapped_model(model: "nn.Module") -> "Generator[nn.Module]":
    """Inside the ``with`` block, give the base of ``model`` with its adapters removed and moved to the host.

    Merging them would change neither shapes nor, therefore, time or memory, so they are not merged. Modules that are
    trained in full, such as parts of shared layers, stay. A model without adapters, or with adapters on a quantised
    base, is given unchanged.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    if not isinstance(model, PeftModel) or getattr(model.get_base_model(), "hf_quantizer", None) is not None:
        yield model
        return
    base: Any = model.get_base_model()
    modules: list[tuple[str, Any]] = list(base.named_modules())
    adapted = {name: part for name, part in modules if isinstance(part, LoraLayer)}
    trained = {name: part for name, part in modules if isinstance(part, ModulesToSaveWrapper)}
    try:
        for name, part in adapted.items():
            base.set_submodule(name, part.get_base_layer())  # pyright: ignore[reportAttributeAccessIssue]
            move_adapters(part, "cpu")
        for name, part in trained.items():
            base.set_submodule(name, part.modules_to_save[part.active_adapters[0]])
        yield base
    finally:
        for name, part in {**adapted, **trained}.items():
            base.set_submodule(name, part)
        for part in adapted.values():
            move_adapters(part, part.get_base_layer().weight.device)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def merged_model(model: "nn.Module") -> "Generator[nn.Module]":
    """Inside the ``with`` block, give the base of ``model`` with its adapters merged; then restore it to the bit.

    This equals the export, except that a model with adapters on a quantised base is given unchanged.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    before: list[tuple[Any, Any]] = []
    try:
        if isinstance(model, PeftModel) and getattr(model.get_base_model(), "hf_quantizer", None) is None:
            for part in [each for each in model.modules() if isinstance(each, LoraLayer)]:
                weight: Any = part.get_base_layer().weight  # pyright: ignore[reportAttributeAccessIssue]
                before.append((weight, weight.data))
                with torch.no_grad():
                    delta = part.get_delta_weight(part.active_adapters[0])  # pyright: ignore
                    weight.data = weight.data + delta.to(weight.dtype)
        with unwrapped_model(model) as plain:
            yield plain
    finally:
        for weight, data in before:
            weight.data = data


def move_adapters(layer: Any, device: Any) -> None:
    """Move a layer's adapters to ``device``, without the layer itself."""
    from torch import nn

    for name in layer.adapter_layer_names:
        if isinstance(adapters := getattr(layer, name, None), nn.Module):
            adapters.to(device)
