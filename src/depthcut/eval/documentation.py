"""Loss on reference text, unlike the demo's articles and speeches: the documentation that comes with Python."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from depthcut.data import Source
from depthcut.eval import FULL_ONLY, Eval, Subnetworks
from depthcut.runtime import store
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.tokens import Tokens
    from depthcut.eval import Bench

Count = Annotated[int, Field(gt=0)]


@strict
class Topics(Source):
    """The topics of Python's ``help``: 0.7 M characters, slightly different between versions of Python."""

    @override
    def documents(self, cache: Path) -> Iterator[str]:
        from pydoc_data.topics import topics

        yield from (text for _, text in sorted(topics.items()))

    @override
    def content(self, cache: Path) -> dict[str, str]:
        return {"topics": store.content_digest(list(self.documents(cache)))}

    @override
    def named(self, content: dict[str, str]) -> str:
        return content["topics"]


@strict
class Documentation(Eval):
    """Mean negative log-likelihood per token of Python's documentation, in nats.

    Attributes:
        sequences: number of sequences.
        length: tokens per sequence.
        batch: sequences per forward pass.
    """

    sequences: Count
    length: Annotated[int, Field(gt=1)]
    batch: Count
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    @property
    def source(self) -> Topics:
        """The packed text."""
        return Topics(span=(0.0, 1.0), sequences=self.sequences, length=self.length, pack=True)

    def reads(self, bench: "Bench") -> Any:
        """Return the tokenised text, by content."""
        return {"text": self.source.identity(bench.cache), "separator": bench.separator}

    @override
    def lengths(self, bench: "Bench") -> dict[str, int]:
        return {"length": 0}

    def prepare(self, bench: "Bench") -> None:
        """Tokenise the text."""
        self.tokens(bench)

    def tokens(self, bench: "Bench") -> "Tokens":
        """Return the text, tokenised once and cached by content."""
        from depthcut.data.text import tokenize

        return tokenize.tokenize_source(
            self.source, bench.tokenizer, bench.separator, bench.cache, part="documentation"
        )

    def __call__(self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY) -> list[dict[str, float]]:
        """Measure ``documentation/loss`` with its standard error, ``loss_over_log_v`` and ``perplexity``."""
        from depthcut.eval.loss import measure_loss

        return measure_loss(model, self.tokens(bench), "documentation", self.batch, cuts)
