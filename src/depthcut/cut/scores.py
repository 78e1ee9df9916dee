"""Scores: a number per layer or per block of layers, with standard errors and bootstrap draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthcut.runtime import documents, store

Matrix = list[list[float]]
Array = NDArray[np.float64]
BOOTSTRAP_DRAWS = 400


@dataclass(frozen=True)
class Scores:
    """Scores of a model of L layers; the lowest is dropped first.

    Block (l, n), layers l .. l+n-1, lies between edges l and l+n. A metric that scores only single layers gives
    ``layers``; a block then costs the sum of its layers.

    Attributes:
        depth: L.
        layers: L scores, or None if blocks were scored.
        layers_stderr: standard errors of ``layers``.
        between: (L+1) x (L+1); ``between[i][j]``, i < j, scores the block from edge i to edge j. All other entries are
            0.
        between_stderr: standard errors of ``between``, of the same shape.
        samples: number of samples used.
        left_out: number of samples skipped because a hidden state was zero or not finite.
        draws: scores in each of R bootstrap draws over the samples, R x L or R x (L+1) x (L+1); None if the metric
            gives none.
    """

    depth: int
    layers: list[float] | None
    layers_stderr: list[float] | None
    between: Matrix | None
    between_stderr: Matrix | None
    samples: int
    left_out: int
    draws: Array | None = None

    @classmethod
    def of_blocks(
        cls, between: Matrix, stderr: Matrix, samples: int, left_out: int, draws: Array | None = None
    ) -> "Scores":
        """Return scores of all blocks."""
        return cls(len(between) - 1, None, None, between, stderr, samples, left_out, draws)

    @classmethod
    def of_layers(
        cls, layers: list[float], stderr: list[float], samples: int = 0, left_out: int = 0, draws: Array | None = None
    ) -> "Scores":
        """Return scores of single layers; ``samples`` is 0 if no text was read."""
        return cls(len(layers), layers, stderr, None, None, samples, left_out, draws)

    @property
    def summed(self) -> bool:
        """True if a block's score is the sum of its layers' scores."""
        return self.between is None

    def block(self, start: int, n: int) -> float:
        """Return the score of the n layers from ``start``."""
        assert start >= 0 and n > 0 and start + n <= self.depth
        if self.between is not None:
            return self.between[start][start + n]
        assert self.layers is not None
        return sum(self.layers[start : start + n])

    def block_stderr(self, start: int, n: int) -> float:
        """Return the standard error of :meth:`block`; for a sum, treat the layers as independent."""
        if self.between_stderr is not None:
            return self.between_stderr[start][start + n]
        assert self.layers_stderr is not None
        return math.hypot(*self.layers_stderr[start : start + n])

    def layer(self, index: int) -> float:
        """Return the score of one layer."""
        return self.block(index, 1)

    def wins(self, starts: Sequence[int], n: int) -> dict[int, float]:
        """Return the share of bootstrap draws in which each start has the lowest block of n layers.

        The most frequent start comes first; starts that never win are omitted. Without draws the result is empty.
        """
        if self.draws is None or not starts:
            return {}
        if self.draws.ndim == 2:
            blocks = [self.draws[:, start : start + n].sum(1) for start in starts]
        else:
            blocks = [self.draws[:, start, start + n] for start in starts]
        first = np.stack(blocks).argmin(0)
        shares = {start: float((first == place).mean()) for place, start in enumerate(starts)}
        return {start: share for start, share in sorted(shares.items(), key=lambda item: -item[1]) if share}

    def write(self, folder: Path) -> None:
        """Write ``scores.json`` and, if there are draws, ``draws.npy`` (float32) into a folder."""
        plain = {key: value for key, value in vars(self).items() if key != "draws"}
        store.write_json(folder / "scores.json", plain)
        if self.draws is not None:
            np.save(folder / "draws.npy", self.draws.astype(np.float32))

    @classmethod
    def read(cls, folder: Path) -> "Scores":
        """Read scores written by :meth:`write`."""
        plain = documents.read_json(folder / "scores.json")
        draws = folder / "draws.npy"
        return cls(**plain, draws=np.load(draws).astype(np.float64) if draws.exists() else None)

    def __post_init__(self) -> None:
        numbers = [*(self.layers or []), *(value for row in self.between or [] for value in row)]
        sides = {len(self.between), *map(len, self.between)} if self.between is not None else {self.depth + 1}
        assert sides == {self.depth + 1} and len(self.layers or range(self.depth)) == self.depth
        assert numbers and all(math.isfinite(value) for value in numbers), "scores must be finite"


def bootstrap_weights(samples: int, seed: int = 0) -> Array:
    """Return Bayesian bootstrap weights, R x samples (Rubin 1981); those of a sample depend on no later sample."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.exponential(size=BOOTSTRAP_DRAWS) for _ in range(samples)], axis=1)
