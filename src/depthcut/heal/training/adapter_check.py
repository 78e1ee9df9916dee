"""Checks adapters against the model before a weight is loaded."""

from typing import TYPE_CHECKING

from depthcut.heal.training.recipe import LowRankRecipe
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.heal import Workspace


@strict
class CheckedAdapters(LowRankRecipe):
    """Low-rank adapters whose shape is checked against the model."""

    def prepare(self, workspace: "Workspace") -> None:
        """Check that the model can take these adapters, before a weight is loaded.

        Raises:
            UserError: if it cannot.
        """
        from depthcut.heal.training import adapters

        adapters.check(workspace, self)
