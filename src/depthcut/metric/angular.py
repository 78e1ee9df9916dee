"""Angular distance between the input and the output of every block (Gromov et al., arXiv:2403.17887, equation 7)."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric, WinShare
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.metric import Subject


@strict
class Angular(Metric):
    """``d(l, n) = arccos(cos(x_l, x_{l+n})) / pi``, averaged over the samples; 0 for a block without rotation.

    Attributes:
        token: ``last``: the last token of each sample that is not padding, as in the paper; ``all``: mean over all
            tokens.
        batch: sequences per forward pass.
        until: stop reading when the block of ``prune=block`` wins this share of bootstrap draws; None reads all text.
    """

    token: Literal["last", "all"]
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

        return block_scores.score_blocks(
            hidden_states.HiddenStates(
                subject=subject,
                name="angular",
                batch=self.batch,
                token=self.token,
                removed=removed,
                unit=unit,
                until=self.until,
            ),
            lambda states_NED: block_scores.pairwise_cosines(states_NED).arccos() / math.pi,
        )
