"""Sampled Shapley values: mean effect of a layer on sub-networks' loss (arXiv:2407.16286; Castro et al. 2009)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.metric import Subject


@strict
class Shapley(Metric):
    """``E_order loss(without i and all before i) - loss(without all before i)``: mean rise when layer i is removed too.

    Every second order reverses the one before, which halves the variance and draws every layer. With ``reach=1``,
    orders are followed to their ends: the Shapley value. A smaller reach stops at the deepest cuts used in practice,
    because the value of a layer in a model of three layers is irrelevant to a cut of one third.

    Attributes:
        orders: number of orders, even.
        reach: fraction of the layers that each order removes.
        seed: seed of the orders.
        batch: sequences per forward pass.
    """

    orders: Annotated[int, Field(ge=2, multiple_of=2)]
    reach: Annotated[float, Field(ge=0.5, le=1)]
    seed: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(gt=0)]
    rescores: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score single units; the sub-networks of an order share a pass."""
        import numpy as np

        left = [layer for layer in range(subject.dense.depth) if layer not in removed]
        rng = np.random.default_rng(self.seed)
        orders: list[list[int]] = []
        for _ in range(self.orders // 2):
            order = [int(layer) for layer in rng.permutation(left)]
            orders += [order, order[::-1]]
        steps = math.ceil(self.reach * len(left))
        return self.scored(subject, removed, unit, left, [order[:steps] for order in orders])

    def scored(
        self, subject: "Subject", removed: tuple[int, ...], unit: Unit, left: list[int], orders: Sequence[Sequence[int]]
    ) -> Scores:
        """Return the mean rise for each unit of ``left``, and its error, over the orders that reach it."""
        import numpy as np

        rises: dict[int, list[float]] = {layer: [] for layer in left}
        for order in orders:
            losses = self.losses(subject, [(*removed, *order[:step]) for step in range(len(order) + 1)], unit)
            for layer, rise in zip(order, np.diff(losses), strict=True):
                rises[layer].append(float(rise))
        errors = [np.std(each, ddof=min(1, len(each) - 1)) / math.sqrt(len(each)) for each in rises.values()]
        means = [float(np.mean(each)) for each in rises.values()]
        return Scores.of_layers(means, [float(error) for error in errors], len(subject.texts.calibration()))

    def losses(self, subject: "Subject", drops: list[tuple[int, ...]], unit: Unit) -> list[float]:
        """Return the mean loss per token without each of ``drops``."""
        import torch

        from depthcut.model.decoder import measurement, shared_prefix

        batches = list(measurement.SequenceBatch.from_tokens(subject.texts.calibration(), self.batch))
        reading = measurement.Measurement(
            "shapley", measurement.loss_measure, False, batches, measurement.mean_and_stderr
        )
        sums_KN, count_N = shared_prefix.measure_subnetworks(subject.dense, drops, unit, reading)
        return measurement.mean_and_stderr(sums_KN, count_N, torch.ones(len(count_N)))[0].tolist()
