"""Distances between layers in the strongest directions of their weights (FlexiGPT, arXiv:2501.14713, section 3.2)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder import linear
from depthcut.replace.fitting import layer_weights, low_rank
from depthcut.runtime import store, verified
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track

if TYPE_CHECKING:
    from depthcut.replace import Site

FORMAT = 1


def shareable_linears(empty: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers within a decoder layer by name.

    Raises:
        UserError: if it has other matrices too, which cannot be shared (experts).
    """
    found = linear.linear_layers(empty)
    others = [n for n, p in empty.named_parameters() if p.ndim > 1 and n.removesuffix(".weight") not in found]
    if others:
        kind = type(empty).__name__
        raise UserError(f"only linear layers can be shared, and {kind} has {others[0]}; use another replacement")
    return found


def nearest_layers(plan: Plan, distances: list[list[float]]) -> dict[int, int]:
    """Return the nearest kept layer of each dropped one (eq. 5); of several, the first."""
    return {i: min(plan.keep, key=lambda j: distances[i][j]) for i in plan.drop}


def layer_distances(site: "Site", rank: int) -> list[list[float]]:
    """Return the distances between all layers, from unquantised weights; computed once per model and rank.

    Raises:
        UserError: as :func:`shareable_linears`, or if the layers' matrices differ in shape.
    """
    key = store.content_digest({"format": FORMAT, "content": site.dense.checkpoint.digest, "rank": rank})
    return verified.cached_value(site.cache / "distances" / key, lambda: {"distances": compute_distances(site, rank)})[
        "distances"
    ]


def compute_distances(site: "Site", rank: int) -> list[list[float]]:
    """Compute the distances, one kind of matrix at a time; L pairs of factors are held."""
    depth_L = site.dense.depth
    names = shareable_linears(layer_weights.meta_layers(site.dense)[0])
    squares = [[0.0] * depth_L for _ in range(depth_L)]
    for name in track(names, "distances", len(names)):
        for (i, j), square in squared_distances(layer_matrices(site, name), rank):
            squares[i][j] += square
            squares[j][i] += square
    return [[square**0.5 for square in row] for row in squares]


def layer_matrices(site: "Site", name: str) -> Iterator[Tensor]:
    """Yield the matrix ``name`` of each layer."""
    for number in range(site.dense.depth):
        yield layer_weights.read_layer_weights(site.dense, number, f"{name}.weight")[f"{name}.weight"]


def squared_distances(matrices: Iterator[Tensor], rank: int) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the squared distance of each pair of matrices.

    Raises:
        UserError: if they differ in shape.
    """
    pairs: list[low_rank.LowRankFactors] = []
    for matrix_mn in matrices:
        pairs.append(low_rank.truncated_svd(matrix_mn, rank))
        shapes = [tuple(part.shape) for part in (*pairs[0], *pairs[-1])]
        if shapes[:2] != shapes[2:]:
            raise UserError("replace=shared needs layers of one shape, got several; use another replacement")
        for j in range(len(pairs) - 1):
            yield (j, len(pairs) - 1), low_rank.truncation_error(pairs[j], pairs[-1], rank)
