"""Adapters below the cut, drawn to the dense model's stream behind it (Gromov et al., arXiv:2403.17887, eq. 8)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.training.adapter_check import CheckedAdapters
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace


@strict
class Boundary(CheckedAdapters, Heal):
    """Low-rank adapters on frozen weights, trained so that the layers above the cut read what they always read.

    Where layers l* to l* + n - 1 are gone, ``L ~ (x^(l*+n)(theta_0) - x^(l*)(theta))^2``: the stream that enters the
    first layer above the cut, the dense model's less the student's. The loss does not depend on that layer, nor on the
    head, so neither is run; and adapters above the cut would get no gradient, so they sit on the layers below. The
    paper proposes this and does not try it, nor say what weight it has beside the next token's loss; here it is alone.

    Of several gaps the last counts: what is below it, between gaps too, is trained, and what is above reads the dense
    model's stream. Of layers that lost a half the last one is below. With nothing below there is nothing to heal.

    Attributes:
        layers: where the adapters sit; there is no choice.
        error: the paper names no norm but the square, and no scale. ``squared``: over the width, mean over tokens. A
            few tokens (the first of a text) have a stream a hundred times as long as the others', and drown these;
            ``relative``: each token's error over the square of its own stream.
        teacher: ``cached``: it reads the text once, and the stream goes to the disk as it is: 2 bytes a token and
            dimension in 16 bits, so 1.2 KB a token for a width of 576, 16 KB for one of 8,192 (a million tokens:
            1.2 GB, 16 GB). ``live``: the dense model's layers up to the boundary stay in memory and read each batch.
    """

    layers: Literal["before_cut"]  # pyright: ignore[reportIncompatibleVariableOverride]
    error: Literal["relative", "squared"]
    teacher: Literal["cached", "live"]
    trains: ClassVar[bool] = True
    runs_all: ClassVar[bool] = False
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    incidental: ClassVar[frozenset[str]] = frozenset({"teacher"})

    @property
    def logits(self) -> int:
        """None: no head is run."""
        return 0

    def reached(self, plan: Plan, left: int) -> range:
        """Which of the ``left`` layers of the pruned model get adapters: those in front of the last gap's end."""
        if not plan.drop:
            return range(0)
        return range(left - sum(layer > max(plan.drop) for layer in plan.keep))

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train the adapters, or attach the trained ones."""
        from depthcut.heal.training import boundary

        return boundary.train_boundary(model, plan, workspace, self, self.error, self.teacher)
