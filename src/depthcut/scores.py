"""What a metric returns: one number for each block of layers, with its standard error."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Scores:
    """Scores of all blocks of a model of L layers. Block (l, n), layers l .. l+n-1, lies between the edges l and l+n.

    Attributes:
        depth: L.
        between: (L+1) x (L+1); ``between[i][j]``, i < j, scores the block from edge i to edge j. The rest is 0.
        stderr: the same shape: standard errors of these means.
        samples: how many samples went in.
        left_out: how many were left out because a hidden state was zero or not finite.
    """

    depth: int
    between: list[list[float]]
    stderr: list[list[float]]
    samples: int
    left_out: int

    def block(self, start: int, n: int) -> float:
        """Score of the n layers from ``start``."""
        assert start >= 0 and n > 0 and start + n <= self.depth
        return self.between[start][start + n]

    def block_stderr(self, start: int, n: int) -> float:
        """Standard error of :meth:`block`."""
        return self.stderr[start][start + n]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scores":
        """The inverse of :meth:`to_dict`."""
        return cls(**data)

    def __post_init__(self) -> None:
        assert all(math.isfinite(value) for row in self.between for value in row)
