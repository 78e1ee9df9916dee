"""The check that every recipe with adapters makes before a weight is loaded."""

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from depthcut.heal import Workspace
    from depthcut.heal.training.low_rank_recipe import LowRankRecipe


class CheckedAdapters:
    """Mixin of a :class:`LowRankRecipe`: its adapters are checked against the model.

    No dataclass: as one it would bring the base's fields before those of the recipe that it is mixed into.
    """

    def prepare(self, workspace: "Workspace") -> None:
        """Check that the model can have such adapters, before a weight is loaded.

        Raises:
            UserError: if it cannot.
        """
        from depthcut.heal.training import adapters

        adapters.check_adapters(workspace, cast("LowRankRecipe", self))
