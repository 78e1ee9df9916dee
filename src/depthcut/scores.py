"""What a metric returns: a number for each layer, or for each block of layers, with its standard error."""

import math
from dataclasses import asdict, dataclass
from typing import Any

Matrix = list[list[float]]


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
    """

    depth: int
    layers: list[float] | None
    layers_stderr: list[float] | None
    between: Matrix | None
    between_stderr: Matrix | None
    samples: int
    left_out: int

    @classmethod
    def of_blocks(cls, between: Matrix, stderr: Matrix, samples: int, left_out: int) -> "Scores":
        """Scores of all blocks."""
        return cls(len(between) - 1, None, None, between, stderr, samples, left_out)

    @classmethod
    def of_layers(cls, layers: list[float], stderr: list[float], samples: int = 0) -> "Scores":
        """Scores of single layers; ``samples`` is 0 where no text was read."""
        return cls(len(layers), layers, stderr, None, None, samples, 0)

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

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scores":
        """The inverse of :meth:`to_dict`."""
        return cls(**data)

    def __post_init__(self) -> None:
        numbers = [*(self.layers or []), *(value for row in self.between or [] for value in row)]
        assert numbers and all(math.isfinite(value) for value in numbers)
