"""Block Influence: one minus the cosine of a block's input and output (ShortGPT, arXiv:2403.03853; FlexiGPT, eq. 1)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.metric import Metric
from depthcut.scores import Scores
from depthcut.strict import strict

if TYPE_CHECKING:
    from depthcut.lab import Lab


@strict
class BlockInfluence(Metric):
    """``BI(l, n) = 1 - E cos(x_l, x_{l+n})`` over all tokens; the papers' own is n = 1.

    Attributes:
        batch: sequences a forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    rescores: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, lab: "Lab", removed: tuple[int, ...] = ()) -> Scores:
        """Score all blocks in one pass."""
        from depthcut import edges

        def influence(states_NED: "edges.Tensor") -> "edges.Tensor":
            return 1 - edges.cosines(states_NED)

        return edges.compared(edges.Pass(lab, removed, self.batch, "all", "block_influence"), influence)
