"""Low-rank approximations, and the distance between two of them (FlexiGPT, arXiv:2501.14713, eqs. 2-5).

Legend: m rows, n columns, r rank; ``left`` is m x r, ``right`` r x n.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LowRankFactors(NamedTuple):
    """A matrix as a product: ``left`` is U S, ``right`` is V^T."""

    left: Tensor
    right: Tensor

    @property
    def product(self) -> Tensor:
        """The full matrix."""
        return self.left @ self.right


def truncated_svd(matrix_mn: Tensor, rank: int) -> LowRankFactors:
    """Return the nearest matrix of rank ``rank``, or of the smaller side if that is less, as U S and V^T in float32.

    Uses the eigenvectors of the smaller Gram matrix in float64, which takes a tenth of the time of an SVD. The product
    is the matrix projected on them, so at full rank it is the matrix itself.
    """
    rows, columns = matrix_mn.shape
    if rows > columns:
        turned = truncated_svd(matrix_mn.T, rank)
        size_r = turned.left.norm(dim=0)
        unit_r = torch.where(size_r > 0, 1 / size_r, 0.0)
        return LowRankFactors((turned.right * size_r[:, None]).T.contiguous(), (turned.left * unit_r).T.contiguous())
    wide_mn = matrix_mn.double()
    u_mr = torch.linalg.eigh(wide_mn @ wide_mn.T)[1][:, -rank:].flip(1)
    seen_rn = u_mr.T @ wide_mn
    size_r = seen_rn.norm(dim=1)
    unit_r = torch.where(size_r > 0, 1 / size_r, 0.0)
    return LowRankFactors((u_mr * size_r).float(), (unit_r[:, None] * seen_rn).float())


def truncation_error(one: LowRankFactors, other: LowRankFactors, rank: int) -> float:
    """Return ``||(W_1 - W_2) - its best approximation of the rank||_F^2`` (eq. 2, squared), without forming either.

    The difference is a product m x 2r by 2r x n. The triangular factors of their QRs give a 2r x 2r matrix with the
    same singular values.
    """
    _, over = torch.linalg.qr(torch.cat((one.left, -other.left), dim=1), mode="r")
    _, under = torch.linalg.qr(torch.cat((one.right, other.right)).T, mode="r")
    small = over.double() @ under.double().T
    short = small if small.shape[0] <= small.shape[1] else small.T
    square = torch.linalg.eigvalsh(short @ short.T)
    return square[: max(0, len(square) - rank)].clamp(min=0).sum().item()
