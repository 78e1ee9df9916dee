"""Replacements: what stands in the gap that the cut leaves."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from depthcut.cut.plan import Plan, Unit
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.tokens import Tokens
    from depthcut.model.surgery.filling import Filling
    from depthcut.study.lab import Lab


@strict
class Replace(ABC):
    """Puts something where the dropped layers were.

    Attributes:
        part: the text that it is fitted to; None: it reads none.
        adds: whether it adds layers where nothing is cut.
    """

    part: ClassVar[Literal["calibration", "train"] | None] = None
    adds: ClassVar[bool] = False

    @property
    def sequences(self) -> int | None:
        """How many sequences of that text it reads; None: as many as the text is told to have."""
        return None

    def check(self, unit: Unit, count: int) -> None:
        """Refuse, before anything is loaded, a cut that it cannot mend.

        Args:
            unit: what is cut.
            count: how many of these go.

        Raises:
            UserError: for a cut in which it would have no place.
        """
        del unit, count

    def reads(self, lab: "Lab") -> Any:
        """What it reads beside the model, by content, as JSON."""
        return [lab.text_identity(self.part), self.sequences] if self.part else None

    def text(self, lab: "Lab") -> "dict[str, Tokens]":
        """The text that it reads, by its part's name."""
        return {self.part: lab.text(self.part, self.sequences)} if self.part else {}

    def prepare(self, lab: "Lab") -> None:
        """Check what it needs of the model and of its text, before a weight is loaded.

        Raises:
            UserError: if that is not there.
        """
        del lab

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, lab: "Lab") -> "nn.Module":
        """Return the pruned ``model`` with its gap filled; ``lab.checkpoint`` still holds the dropped layers."""


@strict
class GapFilling(Replace):
    """A replacement that is made once for a cut, kept by content, and then put into any model that was cut so."""

    def check(self, unit: Unit, count: int) -> None:
        """Refuse halves of layers, and a cut of nothing."""
        word = type(self).__module__.rpartition(".")[2]
        if unit != "layer":
            raise UserError(f"replace={word} stands in for whole layers, got prune.unit={unit}; take replace=none")
        if count == 0:
            raise UserError(f"replace={word} has no gap to fill: nothing is cut. Cut a layer, or take replace=none")

    @abstractmethod
    def made(self, model: "nn.Module", plan: Plan, lab: "Lab") -> "Filling":
        """Make what fills the gaps of ``model``, which is left as it was found.

        Raises:
            UserError: for a gap that it cannot fill, or too little text.
        """

    def __call__(self, model: "nn.Module", plan: Plan, lab: "Lab") -> "nn.Module":
        """Fill the gaps, with what is on file where this cut has been mended before."""
        from depthcut.model.surgery import gaps

        self.check(plan.unit, len(plan.drop))
        fill = gaps.cached_filling(lab, plan, lambda: self.made(model, plan, lab))
        filled = gaps.insert_filling(model, fill, plan, gaps.model_load_config(lab))
        lab.numbers["bytes/weights"] = sum(weight.nbytes for weight in filled.parameters())
        return filled
