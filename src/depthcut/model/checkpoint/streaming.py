"""Streaming of the dense model from disk, one layer at a time; each tensor is read once per pass.

A streamed model is a scaffold (embeddings, first layer, final norm, head) around layers on the meta device. While one
layer computes, threads prefetch the next, and the device holds two layers.
"""

import copy
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint.lazy_tensor import LazyTensor
from depthcut.model.checkpoint.prefetch import PendingTensor, ReaderPool
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import quantisation, sublayers
from depthcut.runtime import devices
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint


class Scaffold:
    """Embeddings, the first layer of each type, final norm and head, around layers on the meta device.

    Attributes:
        checkpoint: the model on disk.
        plan: the layers or sublayers to drop.
        load_config: quantisation, dtype and device.
        config: of the pruned model.
        meta_layers: the kept layers, on the meta device.
        real_indices: indices of the layers that the scaffold loads.

    Raises:
        UserError: if the files name or store the tensors of the layers differently from the model.
    """

    def __init__(self, checkpoint: "Checkpoint", plan: Plan | None, load_config: quantisation.LoadConfig) -> None:
        self.checkpoint = checkpoint
        self.plan = plan or Plan(checkpoint.depth, ())
        self.load_config = load_config
        drops_layers = self.plan.unit == "layer" and self.plan.drop
        self.config = (
            decoder_layers.trimmed_config(checkpoint.config, self.plan.drop) if drops_layers else checkpoint.config
        )
        model = decoder_layers.meta_model(self.config)
        if self.plan.unit != "layer":
            sublayers.remove_sublayers(model, self.plan)
        self.meta_layers = list(decoder_layers.layer_list(model))
        self.real_indices = first_layer_per_type(self.config)

    def load(self, stack: nn.ModuleList) -> PreTrainedModel:
        """Load the scaffold, insert ``stack`` with its first layers replaced, and return the model."""
        kept = {self.plan.keep[number] for number in self.real_indices}
        plan = Plan(self.plan.depth, tuple(old for old in range(self.plan.depth) if old not in kept))
        dtype: Any = str(self.load_config.dtype).removeprefix("torch.")
        model = self.checkpoint.load(
            plan, quantise=self.load_config.quantise, dtype=dtype, device=self.load_config.device
        )
        for number, layer in zip(self.real_indices, decoder_layers.layer_list(model), strict=True):
            stack[number] = layer
        self.first = stack[self.real_indices[0]]
        decoder_layers.install_layers(model, stack, self.config)
        if self.plan.unit != "layer":
            sublayers.remove_sublayers(model, self.plan)
        return model

    def tensors(self, number: int) -> dict[str, LazyTensor]:
        """Return the unread tensors of a layer by their names in the layer."""
        old = self.plan.keep[number]
        prefix = f"{self.checkpoint.layer_prefix}.{old}."
        available = {name.removeprefix(prefix): one for name, one in self.checkpoint.tensors(old).items()}
        wanted = dict(self.meta_layers[number].named_parameters()).keys()
        if missing := sorted(wanted - available.keys()):
            title = self.checkpoint.files.title
            raise UserError(
                f"{title} cannot be streamed: its files do not contain layer {old}'s {missing[0]} under that name"
            )
        return {name: available[name] for name in sorted(wanted)}

    def materialise_layer(self, number: int, put: Callable[[str, nn.Parameter], nn.Parameter]) -> nn.Module:
        """Return a copy of a meta layer; ``put`` returns each parameter, given its name and the meta parameter."""
        layer = copy.deepcopy(self.meta_layers[number])
        if self.load_config.quantise != "none":
            quantisation.insert_quantised_linears(layer, self.load_config.quantise, self.load_config.dtype)
        return quantisation.fill_layer(layer, put, dict(self.first.named_buffers()))


class LayerStream:
    """A model with one layer in memory at a time.

    Args:
        checkpoint: the model on disk.
        load_config: quantisation, dtype and device.

    Raises:
        UserError: as :class:`Scaffold`.
    """

    def __init__(self, checkpoint: "Checkpoint", load_config: quantisation.LoadConfig) -> None:
        self.load_config = load_config
        self.readers = ReaderPool(load_config.device)
        self.pending: dict[int, dict[str, PendingTensor]] = {}
        self.scaffold = Scaffold(checkpoint, None, self.load_config)
        self.meta_layers, firsts = self.scaffold.meta_layers, self.scaffold.real_indices
        self.prefetch_layer(
            next((index for index in range(len(self.meta_layers)) if index not in firsts), len(self.meta_layers))
        )
        self.stack = nn.ModuleList(self.meta_layers)
        self.model = self.scaffold.load(self.stack)

    def stream_layers(self, name: str) -> Iterator[int]:
        """Load each layer in turn and yield its index; it is freed when the next one is requested."""
        started, read = time.monotonic(), 0
        with Meter(f"{name}: layers", len(self.stack)) as meter:
            for number in range(len(self.stack)):
                if self.stack[number] is self.meta_layers[number]:
                    self.prefetch_layer(number)
                arrived = {rest: one.tensor() for rest, one in self.pending.pop(number, {}).items()}
                read += sum(tensor.nbytes for tensor in arrived.values())
                if number + 1 < len(self.stack) and self.stack[number + 1] is self.meta_layers[number + 1]:
                    self.prefetch_layer(number + 1)
                self.load_layer(number, arrived)
                yield number
                self.free_layer(number)
                meter.step(f"{read / 1e9 / (time.monotonic() - started):.2f} GB/s")

    def offload_device(self, h_BTD: Tensor, tokens: int, streams: int = 1) -> torch.device:
        """Return the device on which hidden states wait for the next layer: that of ``h_BTD`` if they fit.

        Half of the free memory is reserved for two layers and their activations.

        Args:
            h_BTD: a hidden state; its width and dtype give the size.
            tokens: number of tokens of each stream.
            streams: number of streams.
        """
        wanted = tokens * streams * h_BTD.shape[-1] * h_BTD.element_size()
        return h_BTD.device if 2 * wanted < devices.free_memory(h_BTD.device.type) else torch.device("cpu")

    def prefetch_layer(self, number: int) -> None:
        """Start reading a layer, unless it is being read."""
        if number < len(self.meta_layers) and number not in self.pending:
            tensors = self.scaffold.tensors(number)
            self.pending[number] = {rest: self.readers.submit(one) for rest, one in tensors.items()}

    def load_layer(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Put the tensors into their layer on the device, quantised if the first layer is."""
        if not tensors:
            return

        def put(name: str, bare: nn.Parameter) -> nn.Parameter:
            return quantisation.materialise_parameter(
                bare, tensors.pop(name), self.load_config.dtype, self.load_config.device
            )

        self.stack[number] = self.scaffold.materialise_layer(number, put)

    def free_layer(self, number: int) -> None:
        """Free a layer's memory, once the GPU has finished with it."""
        if self.readers.device.type == "cuda":
            torch.cuda.synchronize()
        self.stack[number] = self.meta_layers[number]


def first_layer_per_type(config: PreTrainedConfig) -> list[int]:
    """Return the index of the first layer of each attention type; the scaffold loads these."""
    types: list[str] = getattr(decoder_layers.text_config(config), "layer_types", None) or ["all alike"]
    return sorted(types.index(kind) for kind in set(types))
