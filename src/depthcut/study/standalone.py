"""A model and a text in memory, for a metric, a healing or an evaluation without a study around it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthcut.data.text.parts import GivenText
from depthcut.data.text.tokens import Tokens
from depthcut.model.decoder.dense import Dense
from depthcut.runtime.numbers import Numbers


@dataclass
class Standalone:
    """What metrics, trainings and evaluations ask of a run.

    Attributes:
        dense: the dense model; None for what reads none.
        texts: the text.
        tokenizer: of the model; None for what tokenises nothing.
        separator: the token between documents; None: the tokenizer's own end of text.
        folder: of a training's files.
        cache: of what is kept by content.
        device: ``cpu`` or ``cuda``.
        seed: of the batch order.
        digest: names the training, for its checkpoints.
        block: where the block to drop may start, and its size, for a metric that stops early.
        numbers: get seconds and bytes.
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
        """Return one for a model and a text."""
        settings: dict[str, Any] = {"device": dense.device, **more}
        return cls(dense=dense, texts=GivenText(text), **settings)

    @property
    def asked_device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device

    def wanted(self) -> tuple[range, int]:
        """Return where the block to drop may start, and its size."""
        assert self.block is not None, "no block is looked for"
        return self.block

    def other_texts(self) -> dict[str, Any]:
        """Return the texts that choose layers or train the model: none."""
        return {}

    def loggers(self) -> list[Any]:
        """Return no logger."""
        return []
