"""Export of a sharded model: a plain transformers folder with one file per layer, adapters merged."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import exported, quantised_cache
from depthcut.model.checkpoint.sharded import ShardedLayers
from depthcut.model.checkpoint.tensors import INDEX_FILE
from depthcut.model.decoder import layers, merging
from depthcut.runtime import ranks, store


def write_exported_sharded(model: nn.Module, plan: Plan, folder: Path) -> None:
    """Write the pruned model layer by layer; call it in :func:`depthcut.model.checkpoint.sharded.run_on_first_rank`."""
    assert not ranks.global_rank()
    base: Any = model if isinstance(model, PreTrainedModel) else model.get_base_model()  # pyright: ignore
    stack, stem = layers.layer_list(base), layers.layer_prefix(base)
    assert isinstance(stack, ShardedLayers)
    weight_map: dict[str, str] = {}
    size = 0

    def write_file(number: int, tensors: dict[str, Tensor]) -> int:
        name = f"model-{number:05}-of-{len(stack) + 1:05}.safetensors"
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        return sum(tensor.nbytes for tensor in tensors.values())

    outside = {name: each for name, each in base.state_dict().items() if layers.split_tensor_name(name, stem) is None}
    size += write_file(1, quantised_cache.unique_tensors(outside))
    for number in range(len(stack)):
        with stack.gathered_layer(number) as layer, torch.no_grad():
            size += write_file(
                number + 2, {f"{stem}.{number}.{name}": each for name, each in merging.merged_weights(layer).items()}
            )
    store.write_json(folder / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": weight_map})
    base.config.architectures = [type(base).__name__]
    base.config.dtype = str(base.dtype).removeprefix("torch.")
    base.config.use_cache = True
    base.config.save_pretrained(folder)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)
    exported.write_depthcut_config(folder, plan)
