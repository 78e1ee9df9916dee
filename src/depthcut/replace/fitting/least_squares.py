"""Least-squares maps from sufficient statistics: two D x D sums hold all samples, however long the text.

``Z`` holds the inputs of the map, ``R`` the updates of the stream to predict: N x D. B minimises
``||Z B - R||^2 + ridge * ||Z||_columns^2 * ||B||^2``, where the penalty on row i of B is ``ridge * (Z^T Z)_ii``. It
pulls towards adding nothing, and does not depend on the scale of a feature. (ReplaceMe, arXiv:2505.02819, has a penalty
that pulls towards erasing the stream; at ridge 0 the map is the same.)

Legend: N tokens, D width, r rank.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LinearMapKind = Literal["diagonal", "full", "orthogonal", "low_rank"]
# Directions of Z weaker than the strongest by this factor, with features scaled alike, are rounding error.
EIGENVALUE_TOLERANCE = 1e-12


@dataclass
class SufficientStatistics:
    """Sufficient statistics of a fit.

    Attributes:
        zz_DD: Z^T Z, float64.
        zr_DD: Z^T R, float64.
        rr: ``||R||^2``.
        count: N.
    """

    zz_DD: Tensor
    zr_DD: Tensor
    rr: float = 0.0
    count: int = 0

    @classmethod
    def of_width(cls, like_ND: Tensor) -> "SufficientStatistics":
        """Return empty statistics."""
        width = like_ND.shape[1]
        return cls(like_ND.new_zeros(width, width), like_ND.new_zeros(width, width))

    def add(self, z_ND: Tensor, r_ND: Tensor) -> None:
        """Add tokens, float64."""
        self.zz_DD += z_ND.T @ z_ND
        self.zr_DD += z_ND.T @ r_ND
        self.rr += r_ND.square().sum().item()
        self.count += len(z_ND)

    def unexplained(self, b_DD: Tensor) -> float:
        """Return ``||Z B - R||^2 / ||R||^2``; 0 if R is zero."""
        off = self.rr - 2 * (b_DD * self.zr_DD).sum() + (b_DD * (self.zz_DD @ b_DD)).sum()
        return max(0.0, (off / self.rr).item()) if self.rr else 0.0


def fit_map(sums: SufficientStatistics, kind: LinearMapKind, ridge: float, rank: int | None) -> dict[str, Tensor]:
    """Fit the map; return it as the parts of a bridge: ``scale``, ``matrix``, or ``left`` and ``right``."""
    if kind == "diagonal":
        zz_D, zr_D = sums.zz_DD.diagonal(), sums.zr_DD.diagonal()
        return {"scale": torch.where(zz_D > 0, zr_D / (zz_D * (1 + ridge)), 0.0)}
    if kind == "orthogonal":
        return {"matrix": fit_orthogonal(sums, ridge) - torch.eye(len(sums.zz_DD)).to(sums.zz_DD)}
    b_DD = fit_full_matrix(sums, ridge)
    if kind == "full":
        return {"matrix": b_DD}
    assert rank is not None
    return reduce_map_rank(sums, b_DD, ridge, rank)


def fit_full_matrix(sums: SufficientStatistics, ridge: float) -> Tensor:
    """Return ``(Z^T Z + ridge diag)^-1 Z^T R``, the one of least norm if there are several."""
    scale_D = sums.zz_DD.diagonal().sqrt()
    unit_D = torch.where(scale_D > 0, 1 / scale_D, 0.0)
    value_D, vector_DD = torch.linalg.eigh(unit_D[:, None] * sums.zz_DD * unit_D)
    inverse_D = torch.where(value_D > EIGENVALUE_TOLERANCE * value_D.max(), 1 / (value_D + ridge), 0.0)
    return unit_D[:, None] * (vector_DD @ (inverse_D[:, None] * (vector_DD.T @ (unit_D[:, None] * sums.zr_DD))))


def fit_orthogonal(sums: SufficientStatistics, ridge: float) -> Tensor:
    """Return the rotation (or reflection) A with ``Z A`` nearest to ``Z + R``.

    It is ``U V^T`` of ``Z^T (Z + R) + ridge diag``.
    """
    u_DD, _, vh_DD = torch.linalg.svd(sums.zz_DD + sums.zr_DD + ridge * sums.zz_DD.diagonal().diag())
    return u_DD @ vh_DD


def reduce_map_rank(sums: SufficientStatistics, b_DD: Tensor, ridge: float, rank: int) -> dict[str, Tensor]:
    """Return the best map of a rank, given the best map of any rank (reduced-rank regression, Izenman 1975).

    It projects the full map's output on the r directions in which it is largest.
    """
    given_DD = b_DD.T @ (sums.zz_DD + ridge * sums.zz_DD.diagonal().diag()) @ b_DD
    right_Dr = torch.linalg.eigh(given_DD)[1][:, -rank:]
    return {"left": b_DD @ right_Dr, "right": right_Dr.T.contiguous()}


def map_matrix(parts: dict[str, Tensor]) -> Tensor:
    """Return B as a full matrix."""
    if "scale" in parts:
        return parts["scale"].diag()
    return parts["matrix"] if "matrix" in parts else parts["left"] @ parts["right"]
