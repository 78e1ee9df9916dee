"""The scores of all blocks, start by size, where the records lead to them (Gromov et al., arXiv:2403.17887, fig. 4)."""

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
    """The scores of one metric on one model.

    Attributes:
        digest: of the scores.
        model: that was scored.
        metric: that scored.
        unit: what a block is made of.
        depth: L.
        scores: ``scores[n - 1, l]`` is that of the block of n layers from l, L x L; NaN where it would leave the model.
        chosen: for sizes that were cut by ``prune=block``, the start that it took.
        layers: the scores of the single layers, L.
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
        """Each row shifted and scaled to span 0 to 1, as in the paper; a row of one value is 0."""
        low = np.nanmin(self.scores, axis=1, keepdims=True)
        span = np.nanmax(self.scores, axis=1, keepdims=True) - low
        return (self.scores - low) / np.where(span > 0, span, 1)


def load_score_maps(points: Sequence[FinishedPoint]) -> list[ScoreMap]:
    """All scores that some records say they were cut by, and that are still in the cache beside their studies."""
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
    """Turn edges into starts and sizes."""
    depth = scores.depth
    values = np.full((depth, depth), np.nan)
    for n in range(1, depth + 1):
        values[n - 1, : depth - n + 1] = [scores.block(start, n) for start in range(depth - n + 1)]
    return ScoreMap(digest, model, metric, unit, depth, values, [scores.layer(layer) for layer in range(depth)])


def read_cached_scores(folder: Path) -> Scores | None:
    """Scores of the cache; None where they are gone or of another version."""
    try:
        plain = documents.read_json(folder / "scores.json")
        return Scores(**{key: value for key, value in plain.items() if key != "draws"})
    except (OSError, ValueError, TypeError, AssertionError, AttributeError):
        return None


@dataclass(frozen=True)
class RankCorrelation:
    """How far metrics rank the single layers of a model alike: Spearman's correlation, M x M; NaN for equal scores."""

    model: str
    unit: str
    metrics: list[str]
    correlation: Array


def rank_correlations(found: Sequence[ScoreMap]) -> list[RankCorrelation]:
    """Compare the metrics that were tried on a model; one alone is left out."""
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
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    if len(set(one)) < 2 or len(set(two)) < 2:
        return float("nan")
    return float(spearmanr(one, two).statistic)  # pyright: ignore[reportAttributeAccessIssue]
