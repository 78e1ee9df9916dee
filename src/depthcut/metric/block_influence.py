"""Block Influence: one minus the cosine of a block's input and output (ShortGPT, arXiv:2403.03853; FlexiGPT, eq. 1)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric, WinShare
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.metric import Subject


@strict
class BlockInfluence(Metric):
    """``BI(l, n) = 1 - E cos(x_l, x_{l+n})`` over all tokens; the papers use n = 1.

    Attributes:
        batch: sequences per forward pass.
        until: stop reading when the block of ``prune=block`` wins this share of bootstrap draws; None reads all text.
    """

    batch: Annotated[int, Field(gt=0)]
    until: WinShare

    @property
    def stops_early(self) -> bool:
        """Whether it stops reading once the block to drop is certain."""
        return self.until is not None

    rescores: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score all blocks in one pass."""
        from depthcut.metric.passes import block_scores, hidden_states

        def influence(states_NED: "hidden_states.Tensor") -> "hidden_states.Tensor":
            return 1 - block_scores.pairwise_cosines(states_NED)

        over = hidden_states.HiddenStates(
            subject=subject,
            name="block_influence",
            batch=self.batch,
            token="all",
            removed=removed,
            unit=unit,
            until=self.until,
        )
        return block_scores.score_blocks(over, influence)
