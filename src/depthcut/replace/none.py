"""No replacement: the first dropped layer's input feeds the layer after the gap (Gromov et al., section 3)."""

from typing import TYPE_CHECKING

from depthcut.cut.plan import Plan
from depthcut.replace import Replace
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.replace import Site


@strict
class NoReplacement(Replace):
    """Leaves the gaps empty."""

    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Return ``model`` unchanged."""
        del plan, site
        return model
