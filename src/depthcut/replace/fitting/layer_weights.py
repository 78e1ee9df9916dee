"""Weights of the dense model's layers, read in float32 for fitting."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from depthcut.model.decoder import layers
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.model.checkpoint.on_disk import OnDisk


def read_layer_weights(dense: "OnDisk", number: int, only: str = "") -> dict[str, Tensor]:
    """Read the unquantised tensors of a layer of the dense model by their names in it: float32, on the device.

    Args:
        dense: the dense model.
        number: index of the layer.
        only: name of the one tensor to read; empty reads all.

    Raises:
        UserError: if the files do not hold them under their names in the model.
    """
    start = f"{dense.checkpoint.layer_prefix}.{number}."
    found = {name.removeprefix(start): tensor for name, tensor in dense.tensors(number).items()}
    wanted = [only] if only else list(dict(meta_layers(dense)[number].named_parameters()))
    if missing := sorted(set(wanted) - found.keys()):
        title = dense.checkpoint.files.title
        raise UserError(f"{title}: its files do not contain layer {number}'s {missing[0]} under that name")
    return {name: found[name][...].to(dense.device, torch.float32) for name in wanted}


def meta_layers(dense: "OnDisk") -> nn.ModuleList:
    """Return the layers of the dense model, without their weights."""
    return layers.layer_list(layers.meta_model(dense.config))
