"""Models: where the one to cut comes from, in what shape it is computed, and the paper's recipe for it."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from depthcut.runtime.strict import Length, Rank, strict

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.decoder.quantisation import Quantise as Base
else:
    # A config may leave it open; it is settled on entering the run, and nothing behind that sees ``auto``.
    Base = Literal["none", "nf4", "int8", "auto"]


@strict
class HealDefaults:
    """The recipe that fits this model; the healer's config takes it over with ``${model.heal...}``.

    Attributes:
        rank: of the adapters.
        lr: peak learning rate.
        length: tokens of a training sequence.
    """

    rank: Rank
    lr: Annotated[float, Field(gt=0)]
    length: Length


def _parse_heal_defaults(value: Any) -> Any:
    return HealDefaults(**value) if isinstance(value, dict) else value


@strict
class Model(ABC):
    """A model that can be opened.

    Attributes:
        quantise: of the dense, the pruned and the healed model alike; ``nf4`` and ``int8`` are those of bitsandbytes.
            ``auto`` is none where the GPU has room for that, else nf4, as :mod:`depthcut.study.auto_quantise` says.
        dtype: of everything that is not quantised, and of the computation.
        separator: token put between documents and before an empty context; None: the tokenizer's own end of text.
        heal: the recipe that fits this model.
        published: OWNER/NAME on the hub, of a model that comes from elsewhere.
    """

    published: ClassVar[str | None] = None
    quantise: Base
    dtype: Literal["bfloat16", "float16", "float32"]
    separator: str | None
    heal: Annotated[HealDefaults, BeforeValidator(_parse_heal_defaults)]

    @property
    def quantise_is_auto(self) -> bool:
        """Whether ``quantise`` is still ``auto``."""
        return str(self.quantise) == "auto"

    @abstractmethod
    def open(self, cache: Path) -> "Checkpoint":
        """Open it lazily: no weight is read, nothing is on the accelerator.

        Args:
            cache: folder for what is fetched, unpacked or made, kept by content and shared by all runs.

        Raises:
            UserError: if it cannot be had, or is damaged, or not of a kind that can be cut.
        """
