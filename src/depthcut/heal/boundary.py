"""Adapters below the cut, trained to match dense states above it (Gromov et al., arXiv:2403.17887, eq. 8)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.training.adapter_check import CheckedAdapters
from depthcut.heal.training.low_rank_recipe import LowRankRecipe
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace


@strict
class Boundary(CheckedAdapters, LowRankRecipe, Heal):
    """Low-rank adapters on frozen weights, trained to give the layers above the cut the dense model's input.

    If layers l* to l* + n - 1 are dropped, ``L ~ (x^(l*+n)(theta_0) - x^(l*)(theta))^2``: the difference between the
    dense model's and the student's hidden state at the input of the first layer above the cut. The loss does not depend
    on that layer or on the head, so neither is run. Adapters above the cut would get no gradient, so they sit on the
    layers below. The paper proposes this loss but neither tries it nor weighs it against the next-token loss; here it
    is used alone.

    If there are several gaps, the last one counts: all layers below it are trained, those between gaps too, and the
    layers above read the dense model's hidden states. If sublayers are dropped, the last layer that lost one counts as
    below. If no layer is below, nothing is healed.

    Attributes:
        layers: position of the adapters; there is no choice.
        error: the paper gives the square, but no norm and no scale. ``squared``: sum over the width, divided by it;
            mean over tokens. A few tokens (the first of a text) have hidden states a hundred times as long as the
            others and dominate this loss. ``relative``: each token's error divided by the square of its own hidden
            state.
        teacher: ``cached``: the teacher reads the text once, and its hidden states are written to disk: 2 bytes per
            token and dimension at 16 bits, thus 1.2 KB per token for a width of 576 and 16 KB for 8,192 (a million
            tokens: 1.2 GB, 16 GB). ``live``: the dense model's layers up to the boundary stay in memory and read each
            batch.
    """

    layers: Literal["before_cut"]  # pyright: ignore[reportIncompatibleVariableOverride]
    error: Literal["relative", "squared"]
    teacher: Literal["cached", "live"]
    trains: ClassVar[bool] = True
    runs_all: ClassVar[bool] = False
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    incidental: ClassVar[frozenset[str]] = frozenset({"teacher"})

    @property
    def keeps_dense(self) -> bool:
        """Whether the teacher stays in memory."""
        return self.teacher == "live"

    @property
    def logits(self) -> int:
        """0, because the head is not run."""
        return 0

    def reached(self, plan: Plan, left: int) -> range:
        """Return which of the ``left`` layers of the pruned model get adapters: those before the last gap's end."""
        if not plan.drop:
            return range(0)
        return range(left - sum(layer > max(plan.drop) for layer in plan.keep))

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train the adapters, or attach the trained ones."""
        from depthcut.heal.training import boundary

        return boundary.train_boundary(model, plan, workspace, self, self.error, self.teacher)
