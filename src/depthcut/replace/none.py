"""Nothing in the gap: what fed the first dropped layer feeds the layer after the last (Gromov et al., section 3)."""

from typing import TYPE_CHECKING

from depthcut.cut.plan import Plan
from depthcut.replace import Replace
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.replace import Site


@strict
class NoReplacement(Replace):
    """Leaves the gap."""

    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Return ``model`` as it is."""
        del plan, site
        return model
