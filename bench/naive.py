"""What the metrics' naive ways cost: what public tools do, and plain autograd. Measured in part where told so."""

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
from depthcut.model.decoder import inputs, shared_prefix
from depthcut.model.decoder import layers as decoder_layers

EDGES = ("angular", "block_influence", "linearity", "update")
GRADIENTS = ("lora_gradient", "taylor")
TIMED = 4  # sub-networks, where not all are
BATCH = 8  # of what reads no text

Drops = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Cost:
    """What the naive way costs.

    Attributes:
        seconds: of all of it.
        words: what it is, and how much of it was timed.
        passes: layer passes a batch; 0 where they are not what it is about.
        heads: passes of the head a batch.
        exact: whether all of it was timed.
        values: of the sub-networks that were timed: the metric's own value, by what is gone.
    """

    seconds: float
    words: str
    passes: int = 0
    heads: int = 0
    exact: bool = False
    values: dict[tuple[int, ...], float] = field(default_factory=dict[tuple[int, ...], float])


def batches(metric: Metric, here: Any) -> list[tuple[Tensor, Tensor]]:
    """What the metric reads, as it reads it: ids and masks."""
    if isinstance(metric, RemovalMetric):
        return [(rows.ids_BT, rows.mask_BT) for rows in metric.reading(here, None).batches]
    return list(here.texts.calibration().batches(getattr(metric, "batch", BATCH)))


def bare(model: Any, text: list[tuple[Tensor, Tensor]]) -> float:
    """Seconds of one forward pass of the decoder stack: no head, no cache."""

    def work() -> None:
        for ids_BT, mask_BT in text:
            decoder_layers.decoder_stack(model)(**inputs.model_inputs(model, ids_BT, mask_BT))

    with torch.inference_mode():
        return seconds(work)


def way(name: str, metric: Metric, here: Any, full: bool) -> Cost | None:
    """Measure the naive way of a metric; None where there is none."""
    if name in EDGES:
        return edges(here, batches(metric, here))
    if name in GRADIENTS:
        return gradients(here, batches(metric, here))
    if isinstance(metric, RemovalMetric):
        layers = here.dense.depth
        return removals(here, metric.reading(here, None), [(index,) for index in range(layers)], full)
    return orders(here, metric, full) if isinstance(metric, Shapley) else None


def edges(here: Any, text: list[tuple[Tensor, Tensor]]) -> Cost:
    """All hidden states and full logits, once for each block size; nothing is computed on them."""
    model, layers = here.dense.whole(), here.dense.depth

    def work() -> None:
        for ids_BT, mask_BT in text:
            model(**inputs.model_inputs(model, ids_BT, mask_BT), output_hidden_states=True)

    with torch.inference_mode():
        return Cost(
            layers * seconds(work), f"all hidden states and logits, a run for each of {layers} block sizes, 1 timed"
        )


def removals(here: Any, reading: shared_prefix.Measurement, drops: Drops, full: bool) -> Cost:
    """Each sub-network by itself, from the embedding to the logits; the layers are taken out off the clock."""
    model, layers = here.dense.whole(), here.dense.depth
    places = range(len(drops)) if full else np.linspace(0, len(drops) - 1, min(TIMED, len(drops))).round().astype(int)
    chosen = [drops[place] for place in places]
    kept: list[Tensor] = []

    def logits(rows: shared_prefix.SequenceBatch) -> Tensor:
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
    words = f"each of {len(drops)} sub-networks by itself" + ("" if full else f", {len(chosen)} timed")
    passes = sum(layers - len(drop) for drop in drops)
    total = once + sum(took) / len(took) * len(drops)
    return Cost(total, words, passes, len(drops) + reading.needs_dense, full, values)


def orders(here: Any, metric: Shapley, full: bool) -> Cost:
    """One order's sub-networks, times the orders."""
    layers = here.dense.depth
    order = np.random.default_rng(metric.seed).permutation(layers).tolist()
    drops = [tuple(sorted(order[:step])) for step in range(math.ceil(metric.reach * layers) + 1)]
    rows = list(shared_prefix.SequenceBatch.from_tokens(here.texts.calibration(), metric.batch))
    one = removals(
        here,
        shared_prefix.Measurement("shapley", shared_prefix.loss_measure, False, rows, shared_prefix.mean_and_stderr),
        drops,
        full,
    )
    times = metric.orders
    words = f"{one.words}, times {times} orders"
    return Cost(times * one.seconds, words, times * one.passes, times * one.heads)


def gradients(here: Any, text: list[tuple[Tensor, Tensor]]) -> Cost:
    """The gradient of every weight, kept until all the text is read; then weight times gradient."""
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
    """The clock, once the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any]) -> float:
    """How long ``work`` takes."""
    start = now()
    work()
    return now() - start


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """What ``work`` gives, and by how many bytes memory rose meanwhile, at most; 0 where nobody tells."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else what is freed already hides what is needed anew
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark begins anew
    before = status("VmRSS")
    return work(), status("VmHWM") - before


def status(name: str) -> int:
    """A figure of this process, in bytes."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
