"""The mean update: ``y = x + E[y - x]``, one vector per gap (A deeper look at depth pruning, arXiv:2407.16286)."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from depthcut.cut.plan import Plan
from depthcut.replace import GapFilling
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.model.surgery.filling import Filling
    from depthcut.replace import Site


@strict
class Mean(GapFilling):
    """Adds the gap's mean update of the residual stream over the calibration tokens.

    Attributes:
        batch: sequences per forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    part: ClassVar[Literal["calibration"]] = "calibration"
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Average the update of each gap in one pass."""
        from depthcut.model.surgery.filling import Filling, flatten_tensors
        from depthcut.replace.fitting import boundary_states

        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        for start, _, r_ND in boundary_states.gap_samples(model, plan, site, self.batch):
            sums[start] = sums.get(start, 0) + r_ND.sum(0)
            counts[start] = counts.get(start, 0) + len(r_ND)
        return Filling(
            "bridges", flatten_tensors({start: {"bias": (sums[start] / counts[start]).float()} for start in sums})
        )
