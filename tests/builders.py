"""Build texts, subjects of metrics and pruners for the tests."""

from typing import Any

import numpy as np

from depthcut.data.text.tokens import Tokens
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.on_disk import OnDisk
from depthcut.model.decoder.in_memory import InMemory
from depthcut.model.decoder.quantisation import Dtype, Quantise
from depthcut.runtime.numbers import Numbers
from depthcut.study.standalone import Standalone


def tokens(lengths=(9, 12, 5, 12, 7), width=12) -> Tokens:
    ids = np.random.default_rng(0).integers(3, 100, (len(lengths), width), dtype=np.int32)
    return Tokens(ids, np.array(lengths, dtype=np.int32), np.array([], dtype=np.uint64), "x")


def subject(model, text: Tokens | None = None) -> Standalone:
    return Standalone.of(InMemory(model), text or tokens())


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
