"""What a pruner may ask of the metric: scores and values of sub-networks, each computed once and kept by content."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.cut.scores import Scores
from depthcut.metric import RemovalMetric
from depthcut.runtime import store
from depthcut.study import digests

if TYPE_CHECKING:
    from depthcut.study.lab import Lab

log = logging.getLogger("depthcut")


@dataclass(frozen=True)
class Scoring:
    """The metric of one run, asked about its model."""

    lab: "Lab"

    def __call__(self, removed: tuple[int, ...] = ()) -> Scores:
        """The scores without the units ``removed``, computed once for this base, metric, text and unit."""
        lab, unit = self.lab, self.lab.experiment.prune.unit

        def make(folder: Path) -> None:
            with lab.timed("scores"):
                lab.experiment.metric(lab, removed, unit).write(folder)

        key = digests.scores_digest(lab)
        name = store.content_digest([key, removed]) if removed else key
        return Scores.read(store.cached_folder(lab.cache / "scores" / name, make))

    def without(self, drops: Sequence[tuple[int, ...]], samples: int | None = None) -> list[float]:
        """The metric's value of the model without each set of units, on the first ``samples`` sequences or all."""
        lab, metric = self.lab, self.lab.experiment.metric
        assert isinstance(metric, RemovalMetric)

        def make() -> dict[str, list[float]]:
            with lab.timed("scores"):
                return {"values": metric.without(lab, drops, lab.experiment.prune.unit, samples)}

        asked = [digests.scores_digest(lab), [list(drop) for drop in drops], samples]
        return lab.kept("searches", store.content_digest(asked), make)["values"]
