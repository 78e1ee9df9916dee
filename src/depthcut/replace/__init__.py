"""Replacements: what stands in the gap that the cut leaves."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from depthcut.cut.plan import Plan, Unit
from depthcut.runtime import store
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.parts import Texts
    from depthcut.data.text.tokens import Tokens
    from depthcut.model.checkpoint.on_disk import OnDisk
    from depthcut.model.surgery.filling import Filling
    from depthcut.runtime.numbers import Numbers


class Site(Protocol):
    """The run that a replacement is made for.

    Attributes:
        dense: the dense model, with the layers that the plan drops.
        texts: what replacements are fitted to.
        cache: the folder that all runs share.
        numbers: get the seconds and bytes.
    """

    @property
    def dense(self) -> "OnDisk": ...

    @property
    def texts(self) -> "Texts": ...

    @property
    def cache(self) -> Path: ...

    @property
    def numbers(self) -> "Numbers": ...

    def key(self, plan: Plan) -> str:
        """Return the name under which what fills the gaps of ``plan`` is cached."""
        ...


@strict
class Replace(ABC):
    """Puts something where the dropped layers were.

    Attributes:
        part: the text that it is fitted to; None: it reads none.
        adds: whether it adds layers where nothing is cut.
        shares_layers: whether it runs layers of the model again, so that one without them can draft for it.
    """

    part: ClassVar[Literal["calibration", "train"] | None] = None
    adds: ClassVar[bool] = False
    shares_layers: ClassVar[bool] = False

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

    def reads(self, site: "Site") -> Any:
        """What it reads beside the model, by content, as JSON."""
        return [site.texts.identity(self.part), self.sequences] if self.part else None

    def text(self, site: "Site") -> "dict[str, Tokens]":
        """The text that it reads, by its part's name."""
        return {self.part: site.texts.part(self.part, self.sequences)} if self.part else {}

    def prepare(self, site: "Site") -> None:
        """Check what it needs of the model and of its text, before a weight is loaded.

        Raises:
            UserError: if that is not there.
        """
        del site

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Return the pruned ``model`` with its gap filled; ``site.dense`` still holds the dropped layers."""


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
    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Make what fills the gaps of ``model``, which is left as it was found.

        Raises:
            UserError: for a gap that it cannot fill, or too little text.
        """

    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Fill the gaps, with what is on file where this cut has been mended before."""
        from depthcut.model.surgery import gaps
        from depthcut.model.surgery.filling import Filling

        self.check(plan.unit, len(plan.drop))

        def make(folder: Path) -> None:
            with site.numbers.timed("replace"):
                self.made(model, plan, site).write(folder)

        fill = Filling.read(store.cached_folder(site.cache / "replacements" / site.key(plan), make))
        filled = gaps.insert_filling(model, fill, plan, site.dense.load_config)
        site.numbers["bytes/weights"] = sum(weight.nbytes for weight in filled.parameters())
        return filled
