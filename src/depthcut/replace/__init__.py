"""Replacements fill the gaps that the cut leaves."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from depthcut.cut.plan import Plan, Unit
from depthcut.model.checkpoint.on_disk import ModelRun
from depthcut.runtime import verified
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import Method, strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.tokens import Tokens
    from depthcut.model.surgery.filling import Filling


class Site(ModelRun, Protocol):
    """The run that a replacement is made for; its dense model has the layers that the plan drops."""

    def key(self, plan: Plan) -> str:
        """Return the cache key of the filling for ``plan``."""
        ...


@strict
class Replace(Method, ABC):
    """Fills the gaps of a pruned model.

    Attributes:
        part: the text that it is fitted to; None if it reads none.
        adds: whether it adds layers to a model without a cut.
        shares_layers: whether it runs layers of the model again; the model without the repeats can then draft for it.
    """

    part: ClassVar[Literal["calibration", "train"] | None] = None
    adds: ClassVar[bool] = False
    shares_layers: ClassVar[bool] = False

    @property
    def sequences(self) -> int | None:
        """Number of sequences of that text to read; None reads as many as the text is configured to have."""
        return None

    def check(self, unit: Unit, count: int) -> None:
        """Refuse, before anything is loaded, a cut that it cannot fill.

        Args:
            unit: the unit that is cut.
            count: number of units that are cut.

        Raises:
            UserError: if the cut leaves no place for the replacement.
        """
        del unit, count

    def reads(self, site: "Site") -> Any:
        """Return the inputs other than the model, by content, as JSON."""
        return [site.texts.identity(self.part), self.sequences] if self.part else None

    def text(self, site: "Site") -> "dict[str, Tokens]":
        """Return the text that it reads, by the name of its part."""
        return {self.part: site.texts.part(self.part, self.sequences)} if self.part else {}

    def prepare(self, site: "Site") -> None:
        """Check the requirements on the model and the text, before a weight is loaded.

        Raises:
            UserError: if they are not met.
        """
        del site

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Return the pruned ``model`` with its gaps filled; ``site.dense`` still holds the dropped layers."""


@strict
class GapFilling(Replace):
    """A replacement made once per cut, cached by content, and then inserted into any model with the same cut."""

    def check(self, unit: Unit, count: int) -> None:
        """Refuse sublayers and an empty cut."""
        if unit != "layer":
            raise UserError(f"replace={self.word} replaces whole layers, got prune.unit={unit}; use replace=none")
        if count == 0:
            raise UserError(f"replace={self.word} has no gap to fill: nothing is cut. Cut a layer, or use replace=none")

    @abstractmethod
    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Make the filling for the gaps of ``model``; leave the model unchanged.

        Raises:
            UserError: if a gap cannot be filled, or the text is too short.
        """

    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Fill the gaps, from the cache if this cut has been filled before."""
        from depthcut.model.surgery import gaps
        from depthcut.model.surgery.filling import Filling

        self.check(plan.unit, len(plan.drop))

        def make(folder: Path) -> None:
            with site.numbers.timed("replace"):
                self.made(model, plan, site).write(folder)

        fill = Filling.read(verified.cached_folder(site.cache / "replacements" / site.key(plan), make))
        filled = gaps.insert_filling(model, fill, plan, site.dense.load_config)
        site.numbers["bytes/weights"] = sum(weight.nbytes for weight in filled.parameters())
        return filled
