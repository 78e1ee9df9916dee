"""What a metric returns: a number for each layer, or for each block of layers, with its standard error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depthcut.runtime import documents, store

Matrix = list[list[float]]
Array = NDArray[np.float64]
BOOTSTRAP_DRAWS = 400  # of the bootstrap


@dataclass(frozen=True)
class Scores:
    """Scores of a model of L layers; lower goes first. Block (l, n), layers l .. l+n-1, lies between edges l and l+n.

    A metric that prices single layers only gives ``layers``; a block then costs the sum of its layers.

    Attributes:
        depth: L.
        layers: L scores; None if blocks were scored.
        layers_stderr: their standard errors.
        between: (L+1) x (L+1); ``between[i][j]``, i < j, scores the block from edge i to edge j. The rest is 0.
        between_stderr: the same shape: their standard errors.
        samples: how many samples went in.
        left_out: how many were left out because a hidden state was zero or not finite.
        draws: the scores once more in each of R draws of a bootstrap over the samples, R x L or R x (L+1) x (L+1);
            None where a metric gives none.
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
        """Scores of all blocks."""
        return cls(len(between) - 1, None, None, between, stderr, samples, left_out, draws)

    @classmethod
    def of_layers(
        cls, layers: list[float], stderr: list[float], samples: int = 0, left_out: int = 0, draws: Array | None = None
    ) -> "Scores":
        """Scores of single layers; ``samples`` is 0 where no text was read."""
        return cls(len(layers), layers, stderr, None, None, samples, left_out, draws)

    @property
    def summed(self) -> bool:
        """Whether a block's score is the sum of its layers'."""
        return self.between is None

    def block(self, start: int, n: int) -> float:
        """Score of the n layers from ``start``."""
        assert start >= 0 and n > 0 and start + n <= self.depth
        if self.between is not None:
            return self.between[start][start + n]
        assert self.layers is not None
        return sum(self.layers[start : start + n])

    def block_stderr(self, start: int, n: int) -> float:
        """Standard error of :meth:`block`; that of a sum takes the layers as independent."""
        if self.between_stderr is not None:
            return self.between_stderr[start][start + n]
        assert self.layers_stderr is not None
        return math.hypot(*self.layers_stderr[start : start + n])

    def layer(self, index: int) -> float:
        """Score of one layer."""
        return self.block(index, 1)

    def wins(self, starts: Sequence[int], n: int) -> dict[int, float]:
        """In which share of the bootstrap's draws each start gives the lowest block of n layers; those that ever win.

        Empty where there are no draws. The most frequent comes first.
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
        """Write ``scores.json`` and, where there are draws, ``draws.npy`` (float32) into a folder."""
        plain = {key: value for key, value in vars(self).items() if key != "draws"}
        store.write_json(folder / "scores.json", plain)
        if self.draws is not None:
            np.save(folder / "draws.npy", self.draws.astype(np.float32))

    @classmethod
    def read(cls, folder: Path) -> "Scores":
        """The inverse of :meth:`write`."""
        plain = documents.read_json(folder / "scores.json")
        draws = folder / "draws.npy"
        return cls(**plain, draws=np.load(draws).astype(np.float64) if draws.exists() else None)

    def __post_init__(self) -> None:
        numbers = [*(self.layers or []), *(value for row in self.between or [] for value in row)]
        sides = {len(self.between), *map(len, self.between)} if self.between is not None else {self.depth + 1}
        assert sides == {self.depth + 1} and len(self.layers or range(self.depth)) == self.depth
        assert numbers and all(math.isfinite(value) for value in numbers)


def bootstrap_weights(samples: int, seed: int = 0) -> Array:
    """The Bayesian bootstrap's weights, R x samples (Rubin 1981); those of the first do not depend on the rest."""
    chance = np.random.default_rng(seed)
    return np.stack([chance.exponential(size=BOOTSTRAP_DRAWS) for _ in range(samples)], axis=1)
