"""Evaluations: a model in, named numbers out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from depthcut.cut.plan import Unit
from depthcut.cut.subnetworks import FULL, Subnetwork
from depthcut.runtime.strict import method_fields, strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.parts import Texts
    from depthcut.data.text.tokens import Tokens
    from depthcut.model.surgery.sizes import ModelSize
    from depthcut.runtime.numbers import Numbers


Subnetworks = Sequence[Subnetwork]
FULL_ONLY: Subnetworks = (FULL,)
"""The model as it is, alone."""


class Bench(Protocol):
    """The run that a model is measured in.

    Attributes:
        device: ``cpu`` or ``cuda``.
        asked_device: as the config names it; known without torch.
        dense: the dense model, for its sizes.
        texts: the run's texts.
        cache: the folder that all runs share.
        tokenizer: the model's.
        separator: the token between documents; None: the tokenizer's own end of text.
        numbers: get the peak memory.
    """

    @property
    def device(self) -> str: ...

    @property
    def asked_device(self) -> str: ...

    @property
    def dense(self) -> "SizedModel": ...

    @property
    def texts(self) -> "Texts": ...

    @property
    def cache(self) -> Path: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def separator(self) -> str | None: ...

    @property
    def numbers(self) -> "Numbers": ...

    def other_texts(self) -> "dict[str, Callable[[], Tokens]]":
        """Return the parts of the data that choose the layers or train the model, by name."""
        ...


class SizedModel(Protocol):
    """A model whose sizes are known."""

    def sizes(self, unit: Unit, /) -> "ModelSize":
        """Return the sizes of the model and of its units."""
        ...


@strict
class Eval(ABC):
    """Measures a model. A number that could not be measured has no key.

    Attributes:
        needs_whole: whether the model must be whole on one device: what is put together layer by layer takes longer.
        needs_shared_layers: whether it measures only models with shared layers.
        sample: the options that bound how much is measured, such as ``limit``.
    """

    needs_whole: ClassVar[bool] = False
    needs_shared_layers: ClassVar[bool] = False
    sample: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def __call__(
        self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY
    ) -> list[dict[str, float]] | None:
        """Measure each of the ``cuts`` of ``model``, whose work is shared; the numbers are those of each alone.

        Args:
            model: the dense model with the adapters of the cuts, if they have any; alone, and not cut, any model.
            bench: what the method works on.
            cuts: the sub-networks.

        Returns:
            For each cut flat names such as ``arc_easy/acc``, each with its ``_stderr`` where there is one; None if cuts
            cannot be measured without being made.
        """

    @abstractmethod
    def reads(self, bench: "Bench") -> Any:
        """What it reads beside the model, by content, as JSON: a part of the name its numbers are kept under."""

    def check(self) -> None:  # noqa: B027  most name nothing that could be missing
        """Check what can be known without a model, before the point begins.

        Raises:
            UserError: if something that it names does not exist.
        """

    @abstractmethod
    def prepare(self, bench: "Bench") -> None:
        """Fetch and check what it needs beside the texts, before a weight is loaded.

        Raises:
            UserError: if something cannot be had.
        """

    def lengths(self, bench: "Bench") -> dict[str, int]:
        """Return the options that are lengths in tokens, with the tokens that its sequences have on top of them."""
        del bench
        return {}

    def settings(self, bench: "Bench") -> dict[str, Any]:
        """Return the options that the numbers depend on, to tell apart evaluations that give the same names."""
        del bench
        return {key: value for key, value in method_fields(self).items() if key != "class"}

    def digested(self) -> dict[str, Any]:
        """Return options as they stand in its digest, where that is not as they were given: files without folders."""
        return {}

    def parts(self) -> "tuple[Eval, ...]":
        """The pieces that are measured and kept one by one, so that one more task repeats none of the others."""
        return (self,)
