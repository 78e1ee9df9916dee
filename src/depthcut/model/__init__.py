"""Model sources: origin and precision of the model to prune, and the paper's healing recipe for it."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from depthcut.runtime.strict import Length, Method, Rank, strict

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.decoder.quantisation import Quantise as Base
else:
    # A config may say ``auto``. It is resolved when the run starts, and later code never sees it.
    Base = Literal["none", "nf4", "int8", "auto"]


@strict
class HealDefaults:
    """Healing recipe for this model; the healer's config refers to it as ``${model.heal...}``.

    Attributes:
        rank: rank of the adapters.
        lr: peak learning rate.
        length: tokens per training sequence.
    """

    rank: Rank
    lr: Annotated[float, Field(gt=0)]
    length: Length


def _parse_heal_defaults(value: Any) -> Any:
    return HealDefaults(**value) if isinstance(value, dict) else value


@strict
class Model(Method, ABC):
    """A model that can be opened.

    Attributes:
        quantise: quantisation of the dense, pruned and healed model; ``nf4`` and ``int8`` are those of bitsandbytes.
            ``auto`` means none if the model then fits on the GPU, otherwise nf4 (see
            :mod:`depthcut.study.auto_quantise`).
        dtype: type of unquantised weights and of the computation.
        separator: token between documents and before an empty context; None: the tokenizer's end-of-text token.
        heal: healing recipe for this model.
        published: OWNER/NAME on the hub, for a model that is obtained from elsewhere.
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
        """Open the model lazily: read no weights and use no GPU.

        Args:
            cache: folder for downloaded, unpacked and generated files; addressed by content and shared by all runs.

        Raises:
            UserError: if the model is unavailable, damaged or of a kind that cannot be pruned.
        """
