"""The three texts of a run, tokenised once: calibration, train and validation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from depthcut.data import Contents, Source, first_content
from depthcut.data.text.tokenize import tokenize_source
from depthcut.data.text.tokens import Tokens

Part = Literal["calibration", "train", "validation"]


class Tokenizing(Protocol):
    """A model's tokenizer, loaded on first use, and the token between documents."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def separator(self) -> str | None: ...


@dataclass
class Texts:
    """The texts of a run, each tokenised and packed once, and cached by content.

    Attributes:
        sources: the source of each part.
        model: the model whose tokenizer reads them.
        cache: folder shared by all runs.
        train_sequences: number of sequences for healing.
        contents: content of each source at its first use. The digest of the run covers it, so it must not change.
    """

    sources: dict[Part, Source]
    model: Tokenizing
    cache: Path
    train_sequences: int
    contents: Contents = field(default_factory=dict[str, dict[str, str]])
    _tokens: dict[tuple[Part, int | None], Tokens] = field(default_factory=dict[tuple[Part, int | None], Tokens])

    def content(self, source: Source) -> dict[str, str]:
        """Return the content that a source had when this run first used it."""
        return first_content(self.contents, source, self.cache)

    def identity(self, part: Part) -> Any:
        """Return the identity of a part's tokens, by content and as JSON, without reading the text."""
        source = self.sources[part]
        shape = [source.sequences, source.length, source.pack]
        return {"text": source.named(self.content(source)), "shape": shape, "separator": self.model.separator}

    def calibration(self) -> Tokens:
        """Return the text for the metric."""
        return self.part("calibration")

    def validation(self) -> Tokens:
        """Return the text for the loss."""
        return self.part("validation")

    def train(self) -> Tokens:
        """Return the text for healing."""
        return self.part("train", self.train_sequences)

    def part(self, name: Part, sequences: int | None = None) -> Tokens:
        """Return a part, with as many sequences as requested; None: as many as its source sets.

        Raises:
            UserError: if the text is unavailable, too short, or changed since the run began.
        """
        if (name, sequences) not in self._tokens:
            source = self.sources[name]
            found = tokenize_source(source, self.model.tokenizer, self.model.separator, self.cache, sequences, name)
            source.require(self.content(source), self.cache)
            self._tokens[name, sequences] = found
        return self._tokens[name, sequences]


@dataclass(frozen=True)
class GivenText:
    """One text in memory, for all three parts.

    Attributes:
        tokens: the tokenised text.
    """

    tokens: Tokens

    def identity(self, part: Part) -> Any:
        """Return the digest of the text."""
        del part
        return self.tokens.digest

    def calibration(self) -> Tokens:
        """Return the text."""
        return self.tokens

    def validation(self) -> Tokens:
        """Return the text."""
        return self.tokens

    def train(self) -> Tokens:
        """Return the text."""
        return self.tokens
