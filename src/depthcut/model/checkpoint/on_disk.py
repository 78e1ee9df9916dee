"""The dense model of a run, from a checkpoint: loaded whole, streamed or sharded."""

import gc
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from depthcut.cut.plan import Plan, Unit
from depthcut.model.surgery.sizes import ModelSize
from depthcut.runtime import devices
from depthcut.runtime.errors import UserError
from depthcut.runtime.numbers import Numbers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from depthcut.data.text.parts import Texts
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.checkpoint.lazy_tensor import LazyTensor
    from depthcut.model.checkpoint.streaming import LayerStream
    from depthcut.model.decoder.prefix_cache import PrefixCache
    from depthcut.model.decoder.quantisation import Dtype, LoadConfig, Quantise

StreamPolicy = Literal["auto", "always", "never"]


@dataclass
class OnDisk:
    """The dense model of a run, as a :class:`~depthcut.model.decoder.dense.Dense`; also loads pruned models.

    Attributes:
        checkpoint: the model on disk.
        quantise: quantisation of the weights in memory.
        dtype: type of unquantised weights.
        asked_device: ``auto``, ``cpu`` or ``cuda``.
        policy: whether to stream, and to shard if possible; ``auto``: if the model does not fit.
        streamable: whether its consumers can read it layer by layer.
        shardable: whether several processes heal it in shards.
        rescored: whether a search rescores pruned models, which makes caching hidden states worthwhile.
        weights_cache: cache folder for the pruned model's quantised weights; None disables the cache.
        numbers: receives the seconds and bytes of each load.
        helped: whether all processes work together at the moment, as a sharded model requires.
    """

    checkpoint: "Checkpoint"
    quantise: "Quantise"
    dtype: "Dtype"
    asked_device: str
    policy: StreamPolicy
    streamable: bool
    shardable: bool
    rescored: bool
    weights_cache: Path | None
    numbers: Numbers
    helped: bool = False
    _whole: "nn.Module | None" = None
    _stream: "LayerStream | None" = None

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``.

        Raises:
            UserError: if a GPU is requested and there is none.
        """
        return self._device

    @cached_property
    def _device(self) -> str:
        return devices.choose_device(self.asked_device)

    @property
    def depth(self) -> int:
        """Number of layers, L."""
        return self.checkpoint.depth

    @property
    def config(self) -> "PreTrainedConfig":
        """The config of the dense model. Raises as :attr:`Checkpoint.config`."""
        return self.checkpoint.config

    @property
    def load_config(self) -> "LoadConfig":
        """Quantisation, dtype and device of the run's models."""
        import torch

        from depthcut.model.decoder.quantisation import LoadConfig

        return LoadConfig(self.quantise, getattr(torch, self.dtype), self.device)

    def tensors(self, layer: int, unit: Unit = "layer") -> "dict[str, LazyTensor]":
        """Return the unread tensors of a layer or a sublayer by name."""
        return self.checkpoint.tensors(layer, unit)

    def load(self, plan: Plan | None = None) -> "nn.Module":
        """Load the dense model, or only what ``plan`` keeps; a sharded model holds this process's shard."""
        before = self.checkpoint.bytes_read
        with self.numbers.timed("load_pruned" if plan else "load_dense"):
            loaded = self._load_shard(plan) if self.is_sharded(plan) else self._load_whole(plan)
        if plan:
            self.numbers["bytes/read"] = self.checkpoint.bytes_read - before
            self.numbers["bytes/weights"] = sum(weight.nbytes for weight in loaded.parameters())
        return loaded

    def _load_whole(self, plan: Plan | None) -> "nn.Module":
        settings: Any = {"quantise": self.quantise, "dtype": self.dtype, "device": self.device}
        return self.checkpoint.load(plan, **settings, cache=self.weights_cache if plan else None)

    def _load_shard(self, plan: Plan | None) -> "nn.Module":
        """Load this process's shard of what ``plan`` keeps.

        Raises:
            UserError: if even the shards do not fit, or if a process working alone requests the dense model.
        """
        import torch

        from depthcut.model.checkpoint import sharded
        from depthcut.model.decoder import quantisation

        if plan is None and not self.helped:
            raise UserError("the metric needs the whole dense model on one GPU, and it does not fit")
        gc.collect()  # layers of an earlier sharded model and their list form a reference cycle
        devices.check_shards_fit(self.weight_bytes(plan), self.device)
        load_config = quantisation.LoadConfig("none", getattr(torch, self.dtype), self.device)
        return sharded.load_sharded(self.checkpoint, plan, load_config)

    def whole(self) -> "nn.Module":
        """Return the dense model, loaded once for the metric and the evaluation."""
        if self._whole is None:
            self._whole = self.load()
        return self._whole

    def stream(self) -> "LayerStream":
        """Return the dense model, streamed one layer at a time."""
        if self._stream is None:
            from depthcut.model.checkpoint.streaming import LayerStream

            self._stream = LayerStream(self.checkpoint, self.load_config)
        return self._stream

    def release(self) -> "nn.Module | None":
        """Free the dense model's memory; return the loaded model, which :meth:`adopt` takes."""
        loaded, self._whole, self._stream = self._whole, None, None
        vars(self).pop("_prefixes", None)
        return loaded

    def adopt(self, model: "nn.Module | None") -> None:
        """Take a dense model that another run loaded from the same checkpoint."""
        self._whole = model

    @property
    def streaming(self) -> bool:
        """Whether the metric reads the model layer by layer, because it does not fit or the config says so."""
        return self._streaming

    @cached_property
    def _streaming(self) -> bool:
        if self.policy != "auto" or not self.streamable:
            return self.policy == "always"
        return not devices.fits_in_free_memory(self.sizes("layer").total["weight_bytes"], self.device)

    @property
    def prefixes(self) -> "PrefixCache":
        """Cache of hidden states for searches that rescore; empty otherwise."""
        return self._prefixes

    @prefixes.setter
    def prefixes(self, cache: "PrefixCache") -> None:
        self._prefixes = cache

    @cached_property
    def _prefixes(self) -> "PrefixCache":
        from depthcut.model.decoder.prefix_cache import PrefixCache

        return PrefixCache(None if self.rescored else 0)

    def sizes(self, unit: Unit) -> ModelSize:
        """Return the sizes of the dense model and of its units."""
        return ModelSize.from_config(self.config, unit, self.quantise, self.dtype)

    def is_sharded(self, plan: Plan | None) -> bool:
        """Return whether what ``plan`` keeps is sharded, because it does not fit on one GPU or the config says so.

        All processes agree, because it depends on the memory of a GPU instead of the free memory.
        """
        if not self.shardable or self.policy == "never":
            return False
        return self.policy == "always" or not devices.fits_in_total_memory(self.weight_bytes(plan), self.device)

    def weight_bytes(self, plan: Plan | None) -> int:
        """Return the bytes of the weights that ``plan`` keeps."""
        plan = plan or Plan(self.depth, ())
        return self.sizes(plan.unit).totals_without(plan.drop)["weight_bytes"]


class ModelRun(Protocol):
    """A run that loads models.

    Attributes:
        dense: the dense model, and how models are loaded.
        texts: the run's texts.
        cache: the folder that all runs share.
        numbers: get seconds and bytes.
    """

    @property
    def dense(self) -> OnDisk: ...

    @property
    def texts(self) -> "Texts": ...

    @property
    def cache(self) -> Path: ...

    @property
    def numbers(self) -> Numbers: ...
