"""The metric for a pruner: scores and values of sub-networks, each computed once and cached by content."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.cut.scores import Scores
from depthcut.metric import RemovalMetric
from depthcut.runtime import store, verified
from depthcut.study import digests

if TYPE_CHECKING:
    from depthcut.study.run import Run

log = logging.getLogger("depthcut")


@dataclass(frozen=True)
class Scoring:
    """The metric of one run, applied to its model."""

    run: "Run"

    def __call__(self, removed: tuple[int, ...] = ()) -> Scores:
        """Return the scores without the units ``removed``, computed once for this base, metric, text and unit."""
        run, unit = self.run, self.run.experiment.prune.unit

        def make(folder: Path) -> None:
            with run.numbers.timed("scores"):
                scores = run.experiment.metric(run, removed, unit)
            left = run.dense.depth - len(removed)
            assert scores.depth == left, f"{scores.depth} layers scored, expected {left}"
            scores.write(folder)

        key = digests.scores_digest(run)
        name = store.content_digest([key, removed]) if removed else key
        return Scores.read(verified.cached_folder(run.cache / "scores" / name, make))

    def without(self, drops: Sequence[tuple[int, ...]], samples: int | None = None) -> list[float]:
        """Return the metric's value without each set of units, on the first ``samples`` sequences or all."""
        run, metric = self.run, self.run.experiment.metric
        assert isinstance(metric, RemovalMetric)

        def make() -> dict[str, list[float]]:
            with run.numbers.timed("scores"):
                return {"values": metric.without(run, drops, run.experiment.prune.unit, samples)}

        asked = [digests.scores_digest(run), [list(drop) for drop in drops], samples]
        return verified.cached_value(run.cache / "searches" / store.content_digest(asked), make)["values"]
