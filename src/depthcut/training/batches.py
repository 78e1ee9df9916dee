"""The batches of a healing run: one order whatever the micro-batch, and exact resume in the middle of an epoch."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from depthcut import ranks
from depthcut.text import Tokens


class Batch(NamedTuple):
    """A micro-batch: B sequences of T tokens, int64, and their rows in the table that they are from."""

    ids_BT: Tensor
    rows_B: Tensor


class Batches:
    """Micro-batches of packed sequences, in a seeded order, for ever.

    Sequence k of the stream is entry k mod N of its epoch's own permutation, so a batch of 16 holds the same rows as
    four micro-batches of 4, of one process or of two that take turns. Lightning keeps :meth:`state_dict` in its
    checkpoints and restores it: a plain DataLoader would begin again at its first batch.

    Args:
        tokens: N packed sequences of T tokens.
        micro_batch: sequences of one batch, B.
        total: micro-batches of this process in all.
        seed: of the order.
        pin: lay batches where a GPU fetches them while it computes.
    """

    def __init__(self, tokens: Tokens, micro_batch: int, total: int, seed: int, pin: bool = False) -> None:
        self.tokens = tokens
        self.micro_batch = micro_batch
        self.total = total
        self.seed = seed
        self.pin = pin
        self.given = 0
        self.order = lru_cache(2)(self._order)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Batch]:
        while self.given < self.total:
            first = (self.given * ranks.world() + ranks.rank()) * self.micro_batch
            self.given += 1
            rows = [self.row(k) for k in range(first, first + self.micro_batch)]
            batch = Batch(torch.from_numpy(np.asarray(self.tokens.ids[rows], dtype=np.int64)), torch.tensor(rows))
            yield Batch(*(each.pin_memory() for each in batch)) if self.pin else batch

    def row(self, k: int) -> int:
        """The row of the token table that is sequence ``k`` of the stream."""
        epoch, place = divmod(k, len(self.tokens))
        return int(self.order(epoch)[place])

    def _order(self, epoch: int) -> np.ndarray:
        """One epoch's permutation of the N rows."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.tokens))

    def state_dict(self) -> dict[str, Any]:
        """How many sequences all processes gave out: a resumed run may have others, and another micro-batch."""
        return {"sequences": self.given * self.micro_batch * ranks.world()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the sequences that were given out."""
        self.given = state["sequences"] // (self.micro_batch * ranks.world())


class HealingData(L.LightningDataModule):
    """Feeds a healing run from packed, cached tokens."""

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Batches:
        """The micro-batches that are left."""
        return self.batches
