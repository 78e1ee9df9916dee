"""Adapters of several pruned models on one dense model, whose frozen weights they use; each is activated on demand.

An adapter was trained on a pruned model with renumbered layers; here it returns to the original layers.
"""

import re
from collections.abc import Generator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.cut.plan import Plan
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


def attach_adapters(model: "nn.Module", adapters: Mapping[str, tuple[Path, Plan]]) -> "PeftModel":
    """Attach trained adapters to the dense ``model``, in place and inactive.

    Args:
        model: the dense model.
        adapters: for the name of each set of adapters, its folder and the plan under which it was trained.
    """
    from peft import LoraConfig, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import load_file

    from depthcut.model.decoder import layers

    adapted: PeftModelForCausalLM | None = None
    for name, (folder, plan) in adapters.items():
        config = LoraConfig.from_pretrained(str(folder))
        assert isinstance(config, LoraConfig) and isinstance(config.layers_to_transform, list)
        config.layers_to_transform = [plan.keep[index] for index in config.layers_to_transform]
        if adapted is None:
            adapted = PeftModelForCausalLM(model, config, adapter_name=name)  # pyright: ignore[reportArgumentType]
        else:
            adapted.add_adapter(name, config)
        stem = layers.layer_prefix(adapted)
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        dense = {renumber_key(key, stem, plan): tensor for key, tensor in tensors.items()}
        own = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        # Keys in the layers of sublayers that were cut.
        dropped = {key for key in own if (layers.split_tensor_name(key, stem) or (-1,))[0] in plan.drop}
        require_same_weights(folder, dense.keys(), own.keys() - (dropped - dense.keys()))
        assert not set_peft_model_state_dict(adapted, dense, adapter_name=name).unexpected_keys
    assert adapted is not None
    for layer in layers.layer_list(adapted):
        set_active_adapters(layer, [])
    return adapted.eval()


def renumber_key(key: str, stem: str, plan: Plan) -> str:
    """Return the name of an adapter's weight in the dense model, whose layer list is ``stem``."""
    return re.sub(rf"^{re.escape(stem)}\.(\d+)\.", lambda at: f"{stem}.{plan.keep[int(at[1])]}.", key)


def set_active_adapters(layer: "nn.Module", names: list[str]) -> None:
    """Activate the adapters of these names in ``layer``, and no others."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for part in layer.modules():
        if isinstance(part, BaseTunerLayer):
            part.set_adapter(names, inference_mode=True)


@contextmanager
def active_adapter(layer: "nn.Module", name: str) -> Generator[None]:
    """Inside the ``with`` block, activate the adapters of this name in ``layer``; an empty name changes nothing."""
    if name:
        set_active_adapters(layer, [name])
    try:
        yield
    finally:
        if name:
            set_active_adapters(layer, [])


def require_same_weights(folder: Path, found: Set[str], wanted: Set[str]) -> None:
    """Check that a folder holds exactly the weights of a model.

    Raises:
        UserError: if it does not.
    """
    if odd := sorted(wanted ^ found):
        raise UserError(
            f"{folder} contains weights of another cut or recipe: {len(wanted - found)} are missing and "
            f"{len(found - wanted)} unexpected, such as {odd[0]}. Delete the folder to heal the point again"
        )
