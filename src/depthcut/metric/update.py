"""Size of a block's update, in L1 or L2, absolute or relative (A deeper look at depth pruning, arXiv:2407.16286)."""

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from depthcut.metric import BlockMetric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor


@strict
class Update(BlockMetric):
    """``E ||x_{l+n} - x_l||_p`` over all tokens, each optionally divided by ``||x_l||_p``.

    Attributes:
        norm: p.
        relative: whether to divide by the norm of the block's input; entry (i, j) is relative to edge i.
    """

    norm: Literal[1, 2]
    relative: bool

    @override
    def compare(self, states_NED: "Tensor") -> "Tensor":
        import torch

        size_NEE = torch.cdist(states_NED, states_NED, p=self.norm, compute_mode="donot_use_mm_for_euclid_dist")
        return size_NEE / states_NED.norm(p=self.norm, dim=-1)[:, :, None] if self.relative else size_NEE
