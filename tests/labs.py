"""A lab for the tests of metrics: a model in memory and a text, without an experiment around them."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from depthcut.data.text.tokens import Tokens
from depthcut.model.decoder import layers
from depthcut.model.decoder.shared_prefix import PrefixCache


def tokens(lengths=(9, 12, 5, 12, 7), width=12) -> Tokens:
    ids = np.random.default_rng(0).integers(3, 100, (len(lengths), width), dtype=np.int32)
    return Tokens(ids, np.array(lengths, dtype=np.int32), np.array([], dtype=np.uint64), "x")


def lab(model, text: Tokens | None = None) -> Any:
    return SimpleNamespace(
        dense=lambda: model,
        calibration=lambda: text or tokens(),
        streaming=False,
        streams=PrefixCache(),
        device="cpu",
        checkpoint=SimpleNamespace(depth=len(layers.layer_list(model))),
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
    """A pruner that keeps the last layer, save for what ``knobs`` say."""
    return prune(**KNOBS | knobs)
