"""Block Influence: one minus the cosine of a block's input and output (ShortGPT, arXiv:2403.03853; FlexiGPT, eq. 1)."""

from typing import TYPE_CHECKING

from typing_extensions import override

from depthcut.metric import BlockMetric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor


@strict
class BlockInfluence(BlockMetric):
    """``BI(l, n) = 1 - E cos(x_l, x_{l+n})`` over all tokens; the papers use n = 1."""

    @override
    def compare(self, states_NED: "Tensor") -> "Tensor":
        from depthcut.metric.passes.block_scores import pairwise_cosines

        return 1 - pairwise_cosines(states_NED)
