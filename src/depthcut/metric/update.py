"""Size of a block's update, in L1 or L2, absolute or relative (A deeper look at depth pruning, arXiv:2407.16286)."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric, WinShare
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.metric import Subject


@strict
class Update(Metric):
    """``E ||x_{l+n} - x_l||_p`` over all tokens, each optionally divided by ``||x_l||_p``.

    Attributes:
        norm: p.
        relative: whether to divide by the norm of the block's input.
        batch: sequences per forward pass.
        until: stop reading when the block of ``prune=block`` wins this share of bootstrap draws; None reads all text.
    """

    norm: Literal[1, 2]
    relative: bool
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

        over = hidden_states.HiddenStates(
            subject=subject, name="update", batch=self.batch, token="all", removed=removed, unit=unit, until=self.until
        )
        return block_scores.score_blocks(over, self.size)

    def size(self, states_NED: "Tensor") -> "Tensor":
        """Return the norm of the difference between each pair of edges; entry (i, j) is relative to edge i."""
        import torch

        size_NEE = torch.cdist(states_NED, states_NED, p=self.norm, compute_mode="donot_use_mm_for_euclid_dist")
        return size_NEE / states_NED.norm(p=self.norm, dim=-1)[:, :, None] if self.relative else size_NEE
