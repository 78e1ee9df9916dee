"""Perplexity of named texts in short windows, as in Shortened LLaMA for WikiText-2 and PTB (arXiv:2402.02834).

A text's documents are joined by blank lines, tokenised as one text and cut into windows that do not overlap; an
incomplete last window is dropped. With a stride, windows overlap as in transformers' documentation of perplexity: each
token is predicted once, given all tokens before it in its window, and the last window may be shorter. The BOS is the
first token of the first window, or is added before each window. Data set rows without text are skipped; the paper's
code joins them too, which adds blank lines.
"""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints
from typing_extensions import override

from depthcut.data import LONGEST, Source
from depthcut.data.named import texts as named_texts
from depthcut.eval import FULL_ONLY, Eval, Subnetworks
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.tokens import Tokens
    from depthcut.eval import Bench

FORMAT = 1
CHARACTERS_PER_TOKEN = 16  # characters read per token wanted; real texts have fewer
RESERVED_NAMES = ("validation", "documentation", "size", "speed", "speculative")  # prefixes of other numbers' names
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}$")]
Count = Annotated[int, Field(gt=0)]
log = logging.getLogger("depthcut")


@strict
class Perplexity(Eval):
    """Loss and perplexity of several texts.

    Attributes:
        texts: source of each text, as in :class:`depthcut.data.named.texts.NamedText`, by the name of the text, which
            prefixes its numbers; null omits a text.
        window: tokens per window, T.
        stride: tokens from the start of one window to the next; None: windows do not overlap.
        windows: maximum number of windows per text; None: all.
        bos: ``first``: the BOS is the first token of the first window, if the tokenizer has one. ``all``: it is added
            before each window.
        batch: windows per forward pass.
    """

    texts: dict[Name, dict[str, Any] | None]
    window: Annotated[int, Field(gt=1, le=LONGEST)]
    stride: Count | None
    windows: Count | None
    bos: Literal["first", "all"]
    batch: Count
    # `reads` covers the texts, by content.
    incidental: ClassVar[frozenset[str]] = frozenset({"texts", "batch"})
    optional: ClassVar[frozenset[str]] = frozenset({"stride"})
    sample: ClassVar[frozenset[str]] = frozenset({"windows"})

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride > self.window:
            raise UserError(
                f"eval.perplexity.stride must be at most eval.perplexity.window={self.window}, got {self.stride}: "
                "tokens between the windows would be skipped"
            )
        if not self.named:
            raise UserError(
                f"{named_texts.CONFIG_PATH} is empty; add a text: +{named_texts.CONFIG_PATH}.mine.paths=[corpus.txt]"
            )
        for name in self.named:
            if name in RESERVED_NAMES:
                raise UserError(
                    f"{named_texts.CONFIG_PATH}.{name}: this name is used for other numbers; use another name"
                )
            self.source(name)

    @property
    def named(self) -> dict[str, dict[str, Any]]:
        """Return the texts that are not null."""
        return {name: given for name, given in self.texts.items() if given is not None}

    def source(self, name: str) -> Source:
        """Return the source of a text."""
        return named_texts.named_text_source(name, self.named[name], self.window)

    def parts(self) -> tuple[Eval, ...]:
        """Return one part per text."""
        return tuple(dataclasses.replace(self, texts={name: given}) for name, given in self.named.items())

    @override
    def settings(self, bench: "Bench") -> dict[str, Any]:
        return super().settings(bench) | {key: value for given in self.named.values() for key, value in given.items()}

    @override
    def lengths(self, bench: "Bench") -> dict[str, int]:
        return {"window": int(self.bos == "all")}

    def reads(self, bench: "Bench") -> Any:
        """Return the texts by name and content."""
        return {name: self.identity(name, bench) for name in self.named}

    def identity(self, name: str, bench: "Bench") -> str:
        """Return the content digest of a text."""
        return self.source(name).named(self.content(name, bench))

    def content(self, name: str, bench: "Bench") -> dict[str, str]:
        """Return the content of a text when this run first asked for it."""
        with named_texts.prefix_errors(name):
            return bench.texts.content(self.source(name))

    def prepare(self, bench: "Bench") -> None:
        """Fetch and tokenise the texts; none may share a document with the text of the metric or of healing.

        Raises:
            UserError: if a text is unavailable, shorter than one window, or shares a document with another text.
        """
        from depthcut.data.text.tokens import check_disjoint

        read = bench.other_texts()
        for name in self.named:
            windows = self.windowed(name, bench)
            for part, text in ((part, given()) for part, given in read.items()):
                try:
                    check_disjoint({part: text, name: windows})
                except UserError:
                    raise UserError(
                        f"{named_texts.CONFIG_PATH}.{name} shares documents with data.{part}; "
                        "use another text or span for one of them"
                    ) from None

    def windowed(self, name: str, bench: "Bench") -> "Tokens":
        """Return the windows of a text, N x T, made once and cached by content.

        Their ``documents`` are all documents that were read for them.

        Raises:
            UserError: as :meth:`prepare`, and if a BOS is wanted before each window but the tokenizer has none.
        """
        from depthcut.data.text import tokenize
        from depthcut.data.text import tokens as text_tokens
        from depthcut.runtime import store, verified

        tokenizer: Any = bench.tokenizer
        source = self.source(name)
        if self.bos == "all" and tokenizer.bos_token_id is None:
            raise UserError("eval.perplexity.bos=all: this tokenizer has no BOS token; use eval.perplexity.bos=first")
        content = self.content(name, bench)
        asked = [source.named(content), text_tokens.tokenizer_digest(tokenizer), self.window, self.windows, self.bos]
        asked += [] if self.stride is None else [self.stride]

        def make(into: Path) -> None:
            self.fill(into, source.documents(bench.cache), tokenizer)
            source.require(content, bench.cache)

        with named_texts.prefix_errors(name):
            folder = verified.cached_folder(
                bench.cache / "tokens" / store.content_digest(["windows", FORMAT, *asked]), make
            )
        found = tokenize.read_tokens(folder, self.window + (self.bos == "all"))
        if self.windows is not None and len(found) < self.windows:
            log.warning("%s: the text has only %d windows, %d were requested", name, len(found), self.windows)
        return found

    def fill(self, into: Path, documents: Iterable[str], tokenizer: Any) -> None:
        """Write the windows in the format of :func:`depthcut.data.text.tokenize.read_tokens`.

        Raises:
            UserError: if the text is shorter than one window.
        """
        import numpy as np

        from depthcut.data import text_fingerprint

        used = list(
            named_texts.limit_characters(documents, self.windows and self.windows * self.window * CHARACTERS_PER_TOKEN)
        )
        ids: list[int] = tokenizer("\n\n".join(used), add_special_tokens=False, verbose=False)["input_ids"]
        bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        if self.bos == "first":
            ids = bos + ids
        if len(ids) < self.window:
            raise UserError(f"the text has {len(ids)} tokens, fewer than one window of {self.window}")
        starts = window_starts(len(ids), self.window, self.stride)[: self.windows]
        rows = [ids[start : start + self.window] for start in starts]
        lengths = np.asarray([len(row) for row in rows], dtype=np.int32)
        ids_NT = np.asarray([row + row[-1:] * (self.window - len(row)) for row in rows], dtype="<i4")
        context = np.asarray([0, *(self.window - (self.stride or self.window) for _ in rows[1:])], dtype=np.int32)
        if self.bos == "all":
            ids_NT, lengths, context = np.insert(ids_NT, 0, bos, axis=1), lengths + 1, context + 1
        (into / "ids.bin").write_bytes(ids_NT.tobytes())
        np.save(into / "lengths.npy", lengths)
        if self.stride is not None:
            np.save(into / "context.npy", context)
        np.save(into / "documents.npy", np.asarray([text_fingerprint(each) for each in used], dtype=np.uint64))

    def __call__(self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY) -> list[dict[str, float]]:
        """Measure ``NAME/perplexity``, ``NAME/loss`` with its standard error and ``loss_over_log_v`` of each text."""
        from depthcut.eval.loss import measure_loss

        flat: list[dict[str, float]] = [{} for _ in cuts]
        for name in self.named:
            found = measure_loss(model, self.windowed(name, bench), name, self.batch, cuts)
            flat = [before | numbers for before, numbers in zip(flat, found, strict=True)]
        return flat


def window_starts(tokens: int, window: int, stride: int | None) -> range:
    """Return the starts of the windows: end to end without a remainder, or ``stride`` apart up to the end."""
    if stride is None:
        return range(0, tokens - window + 1, window)
    return range(0, max(tokens - window, 0) + stride, stride)
