"""A model and a text in memory, for a metric, healing or an evaluation without a study."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthcut.data.text.parts import GivenText
from depthcut.data.text.tokens import Tokens
from depthcut.model.decoder.dense import Dense
from depthcut.runtime.numbers import Numbers


@dataclass
class Standalone:
    """The part of a run that metrics, healing and evaluations need.

    Attributes:
        dense: the dense model; None if no method reads it.
        texts: the text.
        tokenizer: tokenizer of the model; None if nothing is tokenised.
        separator: token between documents; None: the tokenizer's end-of-text token.
        folder: folder of training files.
        cache: cache folder.
        device: ``cpu`` or ``cuda``.
        seed: seed of the batch order.
        digest: digest of the training, for its checkpoints.
        block: range of starts of the block to drop, and its size, for a metric that stops early.
        numbers: receives seconds and bytes.
    """

    dense: Any = None
    texts: Any = None
    tokenizer: Any = None
    separator: str | None = None
    folder: Path = Path("outputs/standalone")
    cache: Path = Path("outputs/cache")
    device: str = "cpu"
    seed: int = 0
    digest: str = "standalone"
    block: tuple[range, int] | None = None
    numbers: Numbers = field(default_factory=Numbers)

    @classmethod
    def of(cls, dense: Dense, text: Tokens, **more: Any) -> "Standalone":
        """Return an instance for a model and a text."""
        settings: dict[str, Any] = {"device": dense.device, **more}
        return cls(dense=dense, texts=GivenText(text), **settings)

    @property
    def asked_device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device

    def wanted(self) -> tuple[range, int]:
        """Return the range of starts of the block to drop, and its size."""
        assert self.block is not None, "no block is searched for"
        return self.block

    def other_texts(self) -> dict[str, Any]:
        """Return no other texts."""
        return {}

    def loggers(self) -> list[Any]:
        """Return no loggers."""
        return []
