"""Options of LoRAPrune: size, place and schedule of the width pruning."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from depthcut.heal.training.adapter_check import CheckedAdapters
from depthcut.heal.training.low_rank_recipe import LowRankRecipe
from depthcut.heal.training.recipe import Positive, Share
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict


@strict
class WidthRecipe(CheckedAdapters, LowRankRecipe):
    """Low-rank adapters that also rank groups of weights; the least important are removed gradually.

    Attributes:
        layers: fixed, because the criterion sees only layers with adapters.
        strategy: fixed, because the criterion needs whole gradients.
        ratio: fraction of the groups of each kind to remove, in the layers that are narrowed.
        frac: overrides ``ratio`` unless None: remove as many parameters as a cut of this fraction of the layers, or
            slightly more, because groups are whole.
        selection: ``uniform``: the same fraction of each layer, as published; ``global``: the least important of all
            layers.
        prune_every: steps between two selections of the groups, while the removed share grows.
        smoothing: lambda of the moving average of group importance.
        keep_first: fraction of the layers, from the first, that keep their width, rounded down.
        keep_last: number of last layers that keep their width.
    """

    layers: Literal["all"]  # pyright: ignore[reportIncompatibleVariableOverride]
    strategy: Literal["ddp"]  # pyright: ignore[reportIncompatibleVariableOverride]
    ratio: Share
    frac: Annotated[float | None, Field(ge=0, lt=1)]
    selection: Literal["uniform", "global"]
    prune_every: Positive
    smoothing: Share
    keep_first: Share
    keep_last: Annotated[int, Field(ge=0)]
    incidental: ClassVar[frozenset[str]] = frozenset({"frac"})

    def free(self, left: int) -> range:
        """Return which of the ``left`` layers of the model are narrowed.

        Raises:
            UserError: if there are none.
        """
        found = range(int(self.keep_first * left), left - self.keep_last)
        if not found:
            raise UserError(
                f"heal=loraprune: none of {left} layers may be narrowed; lower heal.keep_first "
                f"({self.keep_first:g} of the layers) or heal.keep_last ({self.keep_last})"
            )
        return found
