"""Cost of naive implementations of the metrics, as in public tools, and of plain autograd; partly extrapolated."""

import ctypes
import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthcut.metric import Metric, RemovalMetric
from depthcut.metric.shapley import Shapley
from depthcut.model.decoder import inputs, measurement
from depthcut.model.decoder import layers as decoder_layers

EDGES = ("angular", "block_influence", "linearity", "update")
GRADIENTS = ("lora_gradient", "taylor")
TIMED = 4  # sub-networks, if not all are timed
BATCH = 8  # batch of metrics that read no text

Drops = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Cost:
    """Cost of the naive implementation.

    Attributes:
        seconds: in total.
        words: description, and the part that was timed.
        passes: layer passes per batch; 0 if they are not compared.
        heads: passes of the head per batch.
        exact: True if all of it was timed.
        values: the metric's values of the timed sub-networks, by dropped layers.
    """

    seconds: float
    words: str
    passes: int = 0
    heads: int = 0
    exact: bool = False
    values: dict[tuple[int, ...], float] = field(default_factory=dict[tuple[int, ...], float])


def batches(metric: Metric, here: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the metric's input batches: ids and masks."""
    if isinstance(metric, RemovalMetric):
        return [(rows.ids_BT, rows.mask_BT) for rows in metric.reading(here, None).batches]
    return list(here.texts.calibration().batches(getattr(metric, "batch", BATCH)))


def bare(model: Any, text: list[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of one forward pass of the decoder stack, without head or cache."""

    def work() -> None:
        for ids_BT, mask_BT in text:
            decoder_layers.decoder_stack(model)(**inputs.model_inputs(model, ids_BT, mask_BT))

    with torch.inference_mode():
        return seconds(work)


def way(name: str, metric: Metric, here: Any, full: bool) -> Cost | None:
    """Measure the naive implementation of a metric; None if it has none."""
    if name in EDGES:
        return edges(here, batches(metric, here))
    if name in GRADIENTS:
        return gradients(here, batches(metric, here))
    if isinstance(metric, RemovalMetric):
        layers = here.dense.depth
        return removals(here, metric.reading(here, None), [(index,) for index in range(layers)], full)
    return orders(here, metric, full) if isinstance(metric, Shapley) else None


def edges(here: Any, text: list[tuple[Tensor, Tensor]]) -> Cost:
    """Time all hidden states and full logits, once per block size, without scoring them."""
    model, layers = here.dense.whole(), here.dense.depth

    def work() -> None:
        for ids_BT, mask_BT in text:
            model(**inputs.model_inputs(model, ids_BT, mask_BT), output_hidden_states=True)

    with torch.inference_mode():
        return Cost(layers * seconds(work), f"all hidden states and logits, one run per block size ({layers}), 1 timed")


def removals(here: Any, reading: measurement.Measurement, drops: Drops, full: bool) -> Cost:
    """Time each sub-network separately, from the embedding to the logits; removing the layers is not timed."""
    model, layers = here.dense.whole(), here.dense.depth
    places = range(len(drops)) if full else np.linspace(0, len(drops) - 1, min(TIMED, len(drops))).round().astype(int)
    chosen = [drops[place] for place in places]
    kept: list[Tensor] = []

    def logits(rows: measurement.SequenceBatch) -> Tensor:
        return model(**inputs.model_inputs(model, rows.ids_BT, rows.mask_BT)).logits[:, :-1]

    def through() -> tuple[Tensor, Tensor]:
        sums: list[Tensor] = []
        for place, rows in enumerate(reading.batches):
            targets_BT = rows.targets_BT.to(here.device)
            dense_BTV = kept[place].float() if reading.needs_dense else None
            sums.append(reading.measure(logits(rows).float(), dense_BTV, targets_BT).double().sum(1).cpu())
        counts = [(rows.targets_BT != inputs.NO_TARGET).sum(1) for rows in reading.batches]
        return torch.cat(sums)[None], torch.cat(counts)

    values: dict[tuple[int, ...], float] = {}
    took: list[float] = []
    with torch.inference_mode():
        once = seconds(lambda: kept.extend(map(logits, reading.batches))) if reading.needs_dense else 0.0
        for drop in chosen:
            with decoder_layers.bypass_layers(model, drop):
                start = now()
                sums_KN, count_N = through()
                took.append(now() - start)
            values[drop] = reading.aggregate(sums_KN, count_N, torch.ones(len(count_N)))[0].item()
    words = f"{len(drops)} sub-networks separately" + ("" if full else f", {len(chosen)} timed")
    passes = sum(layers - len(drop) for drop in drops)
    total = once + sum(took) / len(took) * len(drops)
    return Cost(total, words, passes, len(drops) + reading.needs_dense, full, values)


def orders(here: Any, metric: Shapley, full: bool) -> Cost:
    """Time one order's sub-networks, and multiply by the number of orders."""
    layers = here.dense.depth
    order = np.random.default_rng(metric.seed).permutation(layers).tolist()
    drops = [tuple(sorted(order[:step])) for step in range(math.ceil(metric.reach * layers) + 1)]
    rows = list(measurement.SequenceBatch.from_tokens(here.texts.calibration(), metric.batch))
    one = removals(
        here,
        measurement.Measurement("shapley", measurement.loss_measure, False, rows, measurement.mean_and_stderr),
        drops,
        full,
    )
    times = metric.orders
    words = f"{one.words}, times {times} orders"
    return Cost(times * one.seconds, words, times * one.passes, times * one.heads)


def gradients(here: Any, text: list[tuple[Tensor, Tensor]]) -> Cost:
    """Time the gradients of all weights, accumulated over the text; then weight times gradient."""
    model = here.dense.whole()
    before = {weight: weight.requires_grad for weight in model.parameters()}

    def work() -> None:
        for ids_BT, mask_BT in text:
            given = inputs.model_inputs(model, ids_BT, mask_BT)
            inputs.token_losses(model(**given).logits[:, :-1], inputs.next_token_targets(given)).sum().backward()
        for layer in decoder_layers.layer_list(model):
            for weight in layer.parameters():
                assert weight.grad is not None
                (weight.detach() * weight.grad).abs().sum().item()

    model.requires_grad_(True)
    try:
        return Cost(seconds(work), "plain autograd, every weight's gradient kept", exact=True)
    finally:
        for weight, needed in before.items():
            weight.grad = None
            weight.requires_grad_(needed)


def now() -> float:
    """Return the time after synchronising the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds of ``work``."""
    start = now()
    work()
    return now() - start


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of ``work`` and the peak increase of memory in bytes; 0 if unknown."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory hides new allocations
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    before = status("VmRSS")
    return work(), status("VmHWM") - before


def status(name: str) -> int:
    """Return a memory number of this process, in bytes."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
