"""Tokenisation of a source: packed once, cached by content, shared by all runs."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depthcut.data import Source, text_fingerprint
from depthcut.data.text.tokens import FORMAT, Tokens, logger, separator_id, tokenizer_digest
from depthcut.runtime import panics, store, verified
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

if TYPE_CHECKING:
    pass

BATCH_CHARACTERS = 250_000


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
        found = read_tokens(verified.cached_folder(cache / "tokens" / digest, make), source.length)
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
