"""Layers that borrow a kept layer's weights and have their own low-rank adapters (FlexiGPT, arXiv:2501.14713).

A shared layer is a complete layer, with its index and its place in the KV cache. Each of its linear layers calls that
of its base and adds ``right``, then ``left``. Its input norms and biases are those of the dropped layer; in a repeated
layer, which replaces no dropped one, they are the base's. After the output projections of the attention and the MLP
follows a norm with a small gain. Healing or merging the base affects all layers that borrow from it.

Legend: B batch, T tokens, r rank.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear
from transformers import PreTrainedModel

from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import quantisation
from depthcut.model.decoder.linear import linear_layers
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery.filling import Filling, flatten_tensors
from depthcut.model.surgery.inserted import dense_config_entry, filling_config, install_layers_like

OWN_MODULES = ("own_delta", "own_norm")  # trained in full
EPSILON = 1e-6


class LowRankDelta(nn.Module):
    """``x right^T left^T``: turns the base's weights into those of another layer. Float32, because it is trained."""

    def __init__(self, left_mr: Tensor, right_rn: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(left_mr, requires_grad=False)
        self.right = nn.Parameter(right_rn, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute in the dtype of ``x``."""
        return linear(linear(x, self.right.to(x.dtype)), self.left.to(x.dtype))


class OutputNorm(nn.Module):
    """``(h - mean h) / std h * gain`` over the width (eq. 6)."""

    def __init__(self, gain_D: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain_D, requires_grad=False)

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Compute in float32; return the dtype of the input."""
        return layer_norm(h_BTD.float(), self.gain.shape, self.gain, None, EPSILON).to(h_BTD.dtype)


class BorrowedLinear(nn.Module):
    """A linear layer on another layer's weights.

    Args:
        base: the layer that has them.
        name: the linear layer's name in it.
        own: ``own_delta.left`` and ``.right``; ``own_bias``: the difference of the biases; ``own_norm.gain``.
    """

    def __init__(self, base: nn.Module, name: str, own: dict[str, Tensor]) -> None:
        super().__init__()
        self.base = (base,)  # in a tuple: not registered as a submodule
        self.name = name
        self.own_delta = LowRankDelta(own["own_delta.left"], own["own_delta.right"])
        self.own_bias = nn.Parameter(own["own_bias"], requires_grad=False) if "own_bias" in own else None
        self.own_norm = OutputNorm(own["own_norm.gain"]) if "own_norm.gain" in own else None

    def forward(self, x: Tensor) -> Tensor:
        """Add the low-rank delta and the bias to the base's output, then apply the norm."""
        h = self.base[0].get_submodule(self.name)(x) + self.own_delta(x)
        if self.own_bias is not None:
            h = h + self.own_bias
        return h if self.own_norm is None else self.own_norm(h)


def insert_shared_layers(model: nn.Module, filling: Filling, load_config: LoadConfig) -> None:
    """Insert the shared layers; the model then has all its layers again."""
    whole = decoder_layers.meta_model(filling_config(filling))
    bases: dict[str, int] = filling.options["bases"]
    parts, empty = filling.by_layer(), decoder_layers.layer_list(whole)
    keep = [number for number in range(len(empty)) if number not in parts]
    layers = dict(zip(keep, decoder_layers.layer_list(model), strict=True))
    for number, tensors in parts.items():
        layers[number] = build_shared_layer(empty[number], layers[bases[str(number)]], tensors, load_config)
    install_layers_like(model, nn.ModuleList(layers[number] for number in range(len(empty))), whole)


def build_shared_layer(
    empty: nn.Module, base: nn.Module, tensors: dict[str, Tensor], load_config: LoadConfig
) -> nn.Module:
    """Build a shared layer from ``empty``, on the meta device: ``tensors`` are its own, the rest is ``base``'s."""
    layer = copy.deepcopy(empty)
    for name in linear_layers(layer):
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.own_")}
        types = {key: load_config.dtype if key == "own_bias" else torch.float32 for key in own}
        on_device = {key: tensor.to(load_config.device, types[key]) for key, tensor in own.items()}
        layer.set_submodule(name, BorrowedLinear(base, name, on_device))

    def parameter(name: str, bare: nn.Parameter) -> nn.Parameter:
        """Return the shared layer's own parameter, or else that of ``base`` itself, not a copy."""
        if name not in tensors:
            return base.get_parameter(name)
        return quantisation.materialise_parameter(bare, tensors[name], load_config.dtype, load_config.device)

    return quantisation.fill_layer(layer, parameter, dict(base.named_buffers()))


def shared_layer_bases(model: nn.Module) -> dict[int, nn.Module]:
    """Return the base of each shared layer of ``model``, by the index of the shared layer."""
    found: dict[int, nn.Module] = {}
    for number, layer in enumerate(decoder_layers.layer_list(model)):
        if borrowed := [part for part in layer.modules() if isinstance(part, BorrowedLinear)]:
            found[number] = borrowed[0].base[0]
    return found


def extract_shared_layers(model: nn.Module) -> Filling | None:
    """Return the shared layers of ``model``; None if it has none."""
    found: dict[int, dict[str, Tensor]] = {}
    bases: dict[str, int] = {}
    stack = list(decoder_layers.layer_list(model))
    for number, base in shared_layer_bases(model).items():
        theirs = {id(each) for each in base.parameters()}
        found[number] = {n: p.detach() for n, p in stack[number].named_parameters() if id(p) not in theirs}
        bases[str(number)] = stack.index(base)
    if not found:
        return None
    assert isinstance(model, PreTrainedModel)
    return Filling("shared", flatten_tensors(found), {"bases": bases, **dense_config_entry(model.config)})


def remove_shared_layers(model: nn.Module) -> None:
    """Remove the shared layers."""
    filling = extract_shared_layers(model)
    if filling is not None:
        decoder_layers.cut_layers(model, filling.by_layer())


def shared_lora_kwargs(model: nn.Module) -> dict[str, Any]:
    """Return ``LoraConfig`` arguments: borrowed layers get no adapter, because they have their own, trained in full."""
    names = [name for name, part in model.named_modules() if isinstance(part, BorrowedLinear)]
    return {"exclude_modules": names, "modules_to_save": [*OWN_MODULES]} if names else {}
