"""The dense model, one layer at a time off the disk, each tensor read once a pass.

A streamed model is a frame (embeddings, first layer, final norm, head) around layers on the meta device. While one
layer computes, threads bring in the next one, so that the device holds two.
"""

import copy
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from depthcut import depth, loading, memory
from depthcut.ahead import Arrival, Readers
from depthcut.plan import Plan
from depthcut.progress import Meter
from depthcut.shards import Slice

if TYPE_CHECKING:
    from depthcut.lab import Lab

META = torch.device("meta")


class Streamed:
    """A model of which one layer is there.

    Args:
        lab: the checkpoint, and how it is to be loaded.

    Raises:
        ValueError: if the layers' tensors in the files are not named, or not laid out, as those in the model.
    """

    def __init__(self, lab: "Lab") -> None:
        self.lab = lab
        self.readers = Readers(lab.device)
        self.coming: dict[int, dict[str, Arrival]] = {}
        whole = depth.skeleton(lab.checkpoint.config)
        self.bare = list(depth.layers(whole))
        firsts = first_of_each_kind(lab.checkpoint.config)
        others = (index for index in range(lab.checkpoint.depth) if index not in firsts)
        self.fetch(next((index for index in range(len(self.bare)) if index not in firsts), len(self.bare)))
        model, plan = lab.experiment.model, Plan(lab.checkpoint.depth, tuple(others))
        self.model = lab.checkpoint.load(plan, quantise=model.quantise, dtype=model.dtype, device=lab.device)
        there = dict(zip(firsts, depth.layers(self.model), strict=True))
        self.first = there[0]
        self.stack = nn.ModuleList(there.get(index, layer) for index, layer in enumerate(self.bare))
        depth.install(self.model, self.stack, whole.config)

    def layers(self, name: str) -> Iterator[int]:
        """Bring in each layer in turn and give its number; it is gone when the next one is asked for."""
        started, read = time.monotonic(), 0
        with Meter(f"{name}: layers", len(self.stack)) as meter:
            for number in range(len(self.stack)):
                if self.stack[number] is self.bare[number]:
                    self.fetch(number)
                arrived = {rest: one.tensor() for rest, one in self.coming.pop(number, {}).items()}
                read += sum(tensor.nbytes for tensor in arrived.values())
                if number + 1 < len(self.stack) and self.stack[number + 1] is self.bare[number + 1]:
                    self.fetch(number + 1)
                self.fill(number, arrived)
                yield number
                self.empty(number)
                meter.step(f"{read / 1e9 / (time.monotonic() - started):.2f} GB/s")

    def parking(self, h_BTD: Tensor, tokens: int, streams: int = 1) -> torch.device:
        """Where streams like ``h_BTD``, of so many tokens, wait for the next layer: on the device if there is room.

        Half of what is free is left to two layers and to what a layer computes.
        """
        wanted = tokens * streams * h_BTD.shape[-1] * h_BTD.element_size()
        return h_BTD.device if 2 * wanted < memory.free(h_BTD.device.type) else torch.device("cpu")

    def fetch(self, number: int) -> None:
        """Begin to read a layer, if that has not begun."""
        if number < len(self.bare) and number not in self.coming:
            tensors = self.tensors(number)
            self.coming[number] = {rest: self.readers.begin(one) for rest, one in tensors.items()}

    def tensors(self, number: int) -> dict[str, Slice]:
        """A layer's tensors by their names in the layer, unread."""
        prefix = f"{self.lab.checkpoint.prefix}.{number}."
        there = {name.removeprefix(prefix): one for name, one in self.lab.checkpoint.tensors(number).items()}
        wanted = dict(self.bare[number].named_parameters()).keys()
        if missing := sorted(wanted - there.keys()):
            title = self.lab.checkpoint.files.title
            raise ValueError(f"{title} cannot be streamed: its files do not hold layer {number}'s {missing[0]} as such")
        return {name: there[name] for name in sorted(wanted)}

    def fill(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Put the tensors into their layer, on the device, quantised where the first layer is."""
        if not tensors:
            return
        layer = copy.deepcopy(self.bare[number])
        dtype, device = getattr(torch, self.lab.experiment.model.dtype), self.lab.device
        if self.lab.experiment.model.quantise != "none":
            loading.quantisable(layer, self.lab.experiment.model.quantise, dtype)
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            module = layer.get_submodule(owner)
            module.register_parameter(leaf, loading.parameter(module.get_parameter(leaf), tensor, dtype, device))
        for name, buffer in layer.named_buffers():
            if buffer.device == META:
                owner, _, leaf = name.rpartition(".")
                layer.get_submodule(owner).register_buffer(leaf, self.first_buffer(name, buffer), persistent=False)
        self.stack[number] = layer.eval()

    def empty(self, number: int) -> None:
        """Give a layer's memory back, once the device has done with it."""
        if self.readers.device.type == "cuda":
            torch.cuda.synchronize()
        self.stack[number] = self.bare[number]

    def first_buffer(self, name: str, like: Tensor) -> Tensor:
        """A buffer that no file holds, from the first layer, where it is the same."""
        found: Any = dict(self.first.named_buffers()).get(name)
        if found is None or found.shape != like.shape or found.device == META:
            raise ValueError(f"{self.lab.checkpoint.files.title} cannot be streamed: no file holds its layers' {name}")
        return found


def first_of_each_kind(config: PreTrainedConfig) -> list[int]:
    """The first layer, and in a model whose layers attend in several ways the first of each: the frame knows them."""
    kinds: list[str] = getattr(depth.text_config(config), "layer_types", None) or ["all alike"]
    return sorted(kinds.index(kind) for kind in set(kinds))
