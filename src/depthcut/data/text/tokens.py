"""Tokenised texts in memory, their batches, and the check that parts do not overlap."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depthcut.runtime import store
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
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
