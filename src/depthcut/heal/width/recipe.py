"""The options of LoRAPrune: how much width goes, where, and when."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from depthcut.heal.training.adapter_check import CheckedAdapters
from depthcut.heal.training.recipe import Positive, Share
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict


@strict
class WidthRecipe(CheckedAdapters):
    """Low-rank adapters that also tell which groups of weights are worth least; these go little by little.

    Attributes:
        layers: the criterion sees only what has adapters.
        strategy: it needs whole gradients.
        ratio: share of the groups of each kind that goes, in the layers that are narrowed.
        frac: None, or in place of the ratio: as many parameters go as in a cut of this share of the layers, or, as
            groups are whole, a few more.
        selection: ``uniform``: so many in each layer, as published; ``global``: the least of all layers.
        prune_every: steps between two choices of the groups, while the share grows.
        smoothing: lambda of the moving average of what groups are worth.
        keep_first: share of the layers, the first ones, that stay as wide as they are, rounded down.
        keep_last: the last layers that do.
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
        """Which of the ``left`` layers of the model are narrowed.

        Raises:
            UserError: if none is.
        """
        found = range(int(self.keep_first * left), left - self.keep_last)
        if not found:
            raise UserError(
                f"heal=loraprune: of {left} layers none is left to narrow; lower heal.keep_first "
                f"({self.keep_first:g} of the layers) or heal.keep_last ({self.keep_last})"
            )
        return found
