"""Scores of all blocks, start by size, if the cache still has them (Gromov et al., arXiv:2403.17887, fig. 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthcut.cut.scores import Scores
from depthcut.report import labels
from depthcut.report.study import FinishedPoint
from depthcut.runtime import documents

Array = NDArray[np.float64]


@dataclass
class ScoreMap:
    """Scores of one metric on one model.

    Attributes:
        digest: digest of the scores.
        model: the scored model.
        metric: the metric.
        unit: unit of the blocks.
        depth: number of layers, L.
        scores: ``scores[n - 1, l]`` is the score of the block of n layers from l, L x L; NaN beyond the last layer.
        layers: scores of the single layers, L.
        chosen: for each size cut by ``prune=block``, the start that it chose.
    """

    digest: str
    model: str
    metric: str
    unit: str
    depth: int
    scores: Array
    layers: list[float]
    chosen: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def normalised(self) -> Array:
        """Scores with each row shifted and scaled to [0, 1], as in the paper; a row of equal values is 0."""
        low = np.nanmin(self.scores, axis=1, keepdims=True)
        span = np.nanmax(self.scores, axis=1, keepdims=True) - low
        return (self.scores - low) / np.where(span > 0, span, 1)


def load_score_maps(points: Sequence[FinishedPoint]) -> list[ScoreMap]:
    """Return the scores that the records name and that are still in the cache next to their studies."""
    found: dict[str, ScoreMap] = {}
    gone: set[str] = set()
    for point, label in zip(points, labels.record_labels([point.record for point in points]), strict=True):
        digest = point.record.get("scores")
        if not isinstance(digest, str) or not digest.isalnum() or digest in gone:
            continue
        if digest not in found:
            scores = read_cached_scores(point.folder.parents[1] / "cache" / "scores" / digest)
            if scores is None:
                gone.add(digest)
                continue
            unit = point.record["plan"].get("unit", "layer")
            found[digest] = build_score_map(digest, label["model"], label["metric"], unit, scores)
        drop = point.record["plan"]["drop"]
        if label["prune"].split()[0] == "block" and len(drop) == 1:
            found[digest].chosen[drop[0][1] - drop[0][0]] = drop[0][0]
    return list(found.values())


def build_score_map(digest: str, model: str, metric: str, unit: str, scores: Scores) -> ScoreMap:
    """Convert scores by edges to scores by start and size."""
    depth = scores.depth
    values = np.full((depth, depth), np.nan)
    for n in range(1, depth + 1):
        values[n - 1, : depth - n + 1] = [scores.block(start, n) for start in range(depth - n + 1)]
    return ScoreMap(digest, model, metric, unit, depth, values, [scores.layer(layer) for layer in range(depth)])


def read_cached_scores(folder: Path) -> Scores | None:
    """Read scores from the cache; None if they are missing or of another version."""
    try:
        plain = documents.read_json(folder / "scores.json")
        return Scores(**{key: value for key, value in plain.items() if key != "draws"})
    except (OSError, ValueError, TypeError, AssertionError, AttributeError):
        return None


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of the layer scores of metrics on one model, M x M; NaN for equal scores."""

    model: str
    unit: str
    metrics: list[str]
    correlation: Array


def rank_correlations(found: Sequence[ScoreMap]) -> list[RankCorrelation]:
    """Compare the metrics tried on a model; a model with only one is left out."""
    groups: dict[tuple[str, str, int], dict[str, ScoreMap]] = {}
    for each in found:
        groups.setdefault((each.model, each.unit, each.depth), {})[each.metric] = each
    return [
        RankCorrelation(
            model,
            unit,
            list(group),
            np.array([[spearman_correlation(a.layers, b.layers) for a in group.values()] for b in group.values()]),
        )
        for (model, unit, _), group in groups.items()
        if len(group) > 1
    ]


def spearman_correlation(one: list[float], two: list[float]) -> float:
    """Return Spearman's rank correlation."""
    from scipy.stats import spearmanr

    if len(set(one)) < 2 or len(set(two)) < 2:
        return float("nan")
    return float(spearmanr(one, two).statistic)  # pyright: ignore[reportAttributeAccessIssue]
