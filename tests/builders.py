"""Build texts, subjects of metrics and pruners for the tests."""

from typing import Any

import numpy as np
import torch

from depthcut.data.text.tokens import Tokens
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.on_disk import OnDisk
from depthcut.model.decoder import layers
from depthcut.model.decoder.in_memory import InMemory
from depthcut.model.decoder.quantisation import Dtype, Quantise
from depthcut.runtime.numbers import Numbers
from depthcut.study.standalone import Standalone


def tokens(lengths=(9, 12, 5, 12, 7), width=12) -> Tokens:
    """Return random sequences of these lengths, padded on the right to ``width``."""
    ids = np.random.default_rng(0).integers(3, 100, (len(lengths), width), dtype=np.int32)
    return Tokens(ids, np.array(lengths, dtype=np.int32), np.array([], dtype=np.uint64), "x")


def subject(model, text: Tokens | None = None) -> Standalone:
    """Return a model in memory and a text, for a metric."""
    return Standalone.of(InMemory(model), text or tokens())


def make_identity(model, layer: int) -> None:
    """Make a layer of a Llama-like model add nothing to the residual stream."""
    block = layers.layer_list(model)[layer]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()


def on_disk(
    checkpoint: Checkpoint, quantise: Quantise = "none", dtype: Dtype = "float32", stream: bool = False
) -> OnDisk:
    return OnDisk(
        checkpoint,
        quantise,
        dtype,
        "cpu",
        "always" if stream else "never",
        streamable=True,
        shardable=False,
        rescored=True,
        weights_cache=None,
        numbers=Numbers(),
    )


KNOBS: dict[str, Any] = {
    "frac": 0.25,
    "layers": None,
    "parameters": None,
    "weight_bytes": None,
    "cache_bytes": None,
    "unit": "layer",
    "keep_first": 0,
    "keep_last": 1,
}


def sized(prune: Any, **knobs: Any) -> Any:
    """Build a pruner that keeps the last layer, unless ``knobs`` differ."""
    return prune(**KNOBS | knobs)
