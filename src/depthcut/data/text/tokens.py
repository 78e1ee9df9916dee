"""Tokenised texts: packed once, cached by content, shared by all runs; and the check for overlap."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depthcut.data import Source, text_fingerprint
from depthcut.runtime import panics, store
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
BATCH_CHARACTERS = 250_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """N sequences of T tokens, memory-mapped from disk.

    Attributes:
        ids: int32 [N, T], padded on the right.
        lengths: int32 [N], tokens per sequence without padding.
        documents: uint64 [D], fingerprints of the included documents (or of sections of long ones).
        digest: digest of the tokens.
        end: token that ends each document; None: unknown.
        context: int32 [N], tokens at the start of each sequence that are read but not predicted; None: the first only.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    documents: NDArray[np.uint64]
    digest: str
    end: int | None = None
    context: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """Return the number of sequences, N."""
        return len(self.ids)

    def first(self, sequences: int | None) -> "Tokens":
        """Return the first ``sequences`` of them; None: all."""
        context = None if self.context is None else self.context[:sequences]
        return replace(self, ids=self.ids[:sequences], lengths=self.lengths[:sequences], context=context)

    def batches(self, size: int) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield the sequences in order, ``size`` at a time: ids and attention mask, both int64 [B, T].

        T is the length of the longest sequence in the batch.
        """
        import torch

        for start in range(0, len(self), size):
            lengths_B = torch.from_numpy(self.lengths[start : start + size].astype(np.int64))
            longest = int(lengths_B.max())
            ids_BT = torch.from_numpy(self.ids[start : start + size, :longest].astype(np.int64))
            yield ids_BT, (torch.arange(longest) < lengths_B[:, None]).long()


def tokenize_source(
    source: Source, tokenizer: Any, separator: str | None, cache: Path, sequences: int | None = None, part: str = "text"
) -> Tokens:
    """Tokenise the documents of ``source`` up to the requested number of sequences.

    Special tokens that the tokenizer adds by default (a BOS) precede each document. In packed sequences the separator
    ends
    each document; a sequence of one document has none, so its last token belongs to the text.

    Args:
        source: the text and its shape.
        tokenizer: of transformers, fast or slow.
        separator: token between packed documents; None: the tokenizer's end-of-text token.
        cache: cache folder.
        sequences: number of sequences; may be None if ``source.sequences`` is set.
        part: name for messages: calibration, train or validation.

    Returns:
        As many sequences as requested, or as the text yields: at least one.

    Raises:
        UserError: if the text yields no sequence, no number is set, the separator is not a token, or the text changes
            during the run.
    """
    asked = [n for n in (source.sequences, sequences) if n is not None]
    if not asked:
        raise UserError(f"data.{part}.sequences must be a number here, got null")
    end = separator_id(tokenizer, separator)

    def make(into: Path) -> None:
        logger.info("tokenising data.%s: %d sequences of %d tokens", part, min(asked), source.length)
        write_tokens(into, encode_documents(source.documents(cache), tokenizer), source, min(asked), end)
        source.require(content, cache)

    try:
        content = source.content(cache)
        shape = [source.length, source.pack, min(asked)]
        digest = store.content_digest([FORMAT, source.named(content), tokenizer_digest(tokenizer), end, shape])
        found = read_tokens(store.cached_folder(cache / "tokens" / digest, make), source.length)
    except UserError as error:
        raise UserError(f"data.{part}: {error}") from error
    if source.sequences is not None and len(found) < min(asked):
        logger.warning("data.%s: the text has only %d sequences, %d were requested", part, len(found), min(asked))
    return replace(found, end=end)


def write_tokens(
    into: Path, documents: Iterable[tuple[str, list[int]]], source: Source, sequences: int, end: int
) -> None:
    """Write the entry of :func:`tokenize_source`: ids.bin, lengths.npy, documents.npy.

    Raises:
        UserError: if the documents give not one sequence.
    """
    length, written = source.length, 0
    starts: list[int] = []
    lengths: list[int] = []
    prints: list[int] = []
    with (into / "ids.bin").open("wb") as file, Meter("tokenising: sequences", sequences) as meter:
        for text, ids in documents:
            if source.pack:
                row = ids if ids[-1] == end else [*ids, end]
            else:
                row = ids[:length] + [end] * (length - len(ids))
            file.write(np.asarray(row, dtype="<i4").tobytes())
            starts.append(written)
            lengths.append(min(len(ids), length))
            prints.append(text_fingerprint(text))
            written += len(row)
            meter.reach(min(written // length, sequences))
            if written >= sequences * length:
                break
        whole = min(written // length, sequences)
        file.truncate(whole * length * 4)
    if not whole:
        raise UserError(
            f"text too short: its span {list(source.span)} has {written} tokens, at least {length} are needed"
        )
    if not source.pack and max(lengths) < 2:
        raise UserError(
            "every document has fewer than two tokens, so there is nothing to predict; join them with pack=true"
        )
    used = [print_ for print_, start in zip(prints, starts, strict=True) if start < whole * length]
    np.save(into / "documents.npy", np.asarray(used, dtype=np.uint64))
    np.save(into / "lengths.npy", np.asarray([length] * whole if source.pack else lengths, dtype=np.int32))


def read_tokens(folder: Path, length: int) -> Tokens:
    """Open an entry written by :func:`write_tokens`."""
    ids = np.memmap(folder / "ids.bin", dtype="<i4", mode="r").reshape(-1, length)
    lengths, documents = np.load(folder / "lengths.npy"), np.load(folder / "documents.npy")
    context = np.load(folder / "context.npy") if (folder / "context.npy").exists() else None
    return Tokens(ids, lengths, documents, folder.name, context=context)


def encode_documents(documents: Iterable[str], tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    """Tokenise in batches, which a fast tokenizer distributes over the cores."""
    for texts in batch_documents(documents):
        # verbose=False: a document may exceed the model's context here.
        with panics.explain_panics(f"{tokenizer.name_or_path}/tokenizer.json"):
            ids = tokenizer(texts, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
        yield from ((text, row) for text, row in zip(texts, ids, strict=True) if row)


def batch_documents(documents: Iterable[str]) -> Iterator[list[str]]:
    """Group documents into batches of about 250,000 characters."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def separator_id(tokenizer: Any, separator: str | None) -> int:
    """Return the id of the token that ends a document.

    Raises:
        UserError: if the tokenizer has no such token.
    """
    token = tokenizer.eos_token if separator is None else separator
    if token is None:
        raise UserError("model.separator: the tokenizer has no end-of-text token; set one of its tokens")
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise UserError(f"model.separator: {token!r} is not a token of this tokenizer")
    return number


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the digest of a tokenizer by its behaviour, regardless of its origin."""
    if getattr(tokenizer, "is_fast", False):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # Set by the last call, not by the tokenizer's files.
        state.pop("truncation", None)
        state.pop("padding", None)
        return store.content_digest(state)
    files = [Path(str(getattr(tokenizer, name, None))) for name in sorted(tokenizer.vocab_files_names)]
    content = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return store.content_digest(
        [type(tokenizer).__name__, tokenizer.get_vocab(), content, tokenizer("A text.")["input_ids"]]
    )


def check_disjoint(parts: dict[str, Tokens]) -> None:
    """Check that no document is in two parts.

    Raises:
        UserError: naming two parts that share documents.
    """
    for (one, a), (other, b) in combinations(parts.items(), 2):
        shared = len(np.intersect1d(a.documents, b.documents))
        if shared:
            noun = "document" if shared == 1 else "documents"
            raise UserError(
                f"data.{one} and data.{other} share {shared} {noun}; use other files, "
                "or spans that do not overlap, e.g. data.train.span=[0,0.9] data.validation.span=[0.9,1]"
            )
