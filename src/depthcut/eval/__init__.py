"""Evaluations: a model in, named numbers out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from depthcut.cut.subnetworks import FULL, Subnetwork
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.study.lab import Lab

Subnetworks = Sequence[Subnetwork]
FULL_ONLY: Subnetworks = (FULL,)
"""The model as it is, alone."""


@strict
class Eval(ABC):
    """Measures a model. A number that could not be measured has no key.

    Attributes:
        needs_whole: whether the model must be whole on one device: what is put together layer by layer takes longer.
        sample: the options that bound how much is measured, such as ``limit``.
    """

    needs_whole: ClassVar[bool] = False
    sample: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def __call__(self, model: "nn.Module", lab: "Lab", cuts: Subnetworks = FULL_ONLY) -> list[dict[str, float]] | None:
        """Measure each of the ``cuts`` of ``model``, whose work is shared; the numbers are those of each alone.

        Args:
            model: the dense model with the adapters of the cuts, if they have any; alone, and not cut, any model.
            lab: what a run shares.
            cuts: the sub-networks.

        Returns:
            For each cut flat names such as ``arc_easy/acc``, each with its ``_stderr`` where there is one; None if cuts
            cannot be measured without being made.
        """

    @abstractmethod
    def reads(self, lab: "Lab") -> Any:
        """What it reads beside the model, by content, as JSON: a part of the name its numbers are kept under."""

    def check(self) -> None:  # noqa: B027  most name nothing that could be missing
        """Check what can be known without a model, before the point begins.

        Raises:
            UserError: if something that it names does not exist.
        """

    @abstractmethod
    def prepare(self, lab: "Lab") -> None:
        """Fetch and check what it needs beside the texts, before a weight is loaded.

        Raises:
            UserError: if something cannot be had.
        """

    def lengths(self, lab: "Lab") -> dict[str, int]:
        """Return the options that are lengths in tokens, with the tokens that its sequences have on top of them."""
        del lab
        return {}

    def settings(self, lab: "Lab") -> dict[str, Any]:
        """Return the options that the numbers depend on, to tell apart evaluations that give the same names."""
        from depthcut.study import digests

        del lab
        return {key: value for key, value in digests.method_fields(self).items() if key != "class"}

    def digested(self) -> dict[str, Any]:
        """Return options as they stand in its digest, where that is not as they were given: files without folders."""
        return {}

    def parts(self) -> "tuple[Eval, ...]":
        """The pieces that are measured and kept one by one, so that one more task repeats none of the others."""
        return (self,)
