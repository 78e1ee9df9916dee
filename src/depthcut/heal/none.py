"""No healing: the pruned model unchanged (Gromov et al. 2024, arXiv:2403.17887, the unhealed curves)."""

from typing import TYPE_CHECKING, ClassVar

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace


@strict
class NoHealing(Heal):
    """Leaves the model unchanged."""

    trains: ClassVar[bool] = False
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    leaves: ClassVar[str] = ""

    @property
    def sequences(self) -> int:
        """0, because nothing is trained."""
        return 0

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Return ``model`` unchanged."""
        del plan, workspace
        return model
