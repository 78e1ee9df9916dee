"""Angular distance between the input and the output of every block (Gromov et al., arXiv:2403.17887, equation 7)."""

import math
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from depthcut.metric import BlockMetric
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor


@strict
class Angular(BlockMetric):
    """``d(l, n) = arccos(cos(x_l, x_{l+n})) / pi``, averaged over the samples; 0 for a block without rotation.

    Attributes:
        token: ``last``: the last token of each sample that is not padding, as in the paper; ``all``: mean over all
            tokens.
    """

    token: Literal["last", "all"]

    @property
    @override
    def compared_tokens(self) -> Literal["last", "all"]:
        return self.token

    @override
    def compare(self, states_NED: "Tensor") -> "Tensor":
        from depthcut.metric.passes.block_scores import pairwise_cosines

        return pairwise_cosines(states_NED).arccos() / math.pi
