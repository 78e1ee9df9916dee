"""The batches of a healing run: one order whatever the micro-batch, and exact resume in the middle of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from depthcut.data.text.tokens import Tokens
from depthcut.heal.training import document_mask
from depthcut.runtime import ranks


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch: B sequences of T tokens.

    Attributes:
        ids_BT: int64.
        rows_B: their rows in the table that they are from, on the host.
        places_BT: each token's place in its document, where documents are kept apart; else a row is one.
        targets: how many predictions a micro-batch of this step has, on average; None: T - 1 a sequence.
    """

    ids_BT: Tensor
    rows_B: Tensor
    places_BT: Tensor | None = None
    targets: float | None = None

    def on(self, device: torch.device) -> "MicroBatch":
        """The same on ``device``; the rows' numbers stay on the host, where a cached teacher is looked up by them."""
        places_BT = None if self.places_BT is None else self.places_BT.to(device, non_blocking=True)
        return replace(self, ids_BT=self.ids_BT.to(device, non_blocking=True), places_BT=places_BT)

    def pinned(self) -> "MicroBatch":
        """The same, where a GPU fetches it while it computes."""
        places_BT = None if self.places_BT is None else self.places_BT.pin_memory()
        return replace(self, ids_BT=self.ids_BT.pin_memory(), places_BT=places_BT)


class MicroBatchLoader:
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
        apart: sequences a step, of all processes, where the documents of a row are kept apart; None: they are not.
    """

    def __init__(
        self, tokens: Tokens, micro_batch: int, total: int, seed: int, pin: bool = False, apart: int | None = None
    ) -> None:
        self.tokens = tokens
        self.micro_batch = micro_batch
        self.total = total
        self.seed = seed
        self.pin = pin
        self.apart = apart
        self.given = 0
        self.order = lru_cache(2)(self._order)
        self.predictions = lru_cache(2)(self._predictions)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[MicroBatch]:
        while self.given < self.total:
            first = (self.given * ranks.world_size() + ranks.global_rank()) * self.micro_batch
            self.given += 1
            batch = self.batch(first)
            yield batch.pinned() if self.pin else batch

    def batch(self, first: int) -> MicroBatch:
        """The micro-batch that begins with sequence ``first`` of the stream."""
        rows = [self.row(k) for k in range(first, first + self.micro_batch)]
        ids_BT = torch.from_numpy(np.asarray(self.tokens.ids[rows], dtype=np.int64))
        if self.apart is None:
            return MicroBatch(ids_BT, torch.tensor(rows))
        assert self.tokens.end is not None
        targets = self.predictions(first // self.apart) * self.micro_batch / self.apart
        return MicroBatch(
            ids_BT, torch.tensor(rows), document_mask.document_positions(ids_BT, self.tokens.end), targets
        )

    def _predictions(self, step: int) -> int:
        """How many tokens of a step's sequences are predicted, or 1: all but the first of each document."""
        assert self.apart is not None
        rows = [self.row(k) for k in range(step * self.apart, (step + 1) * self.apart)]
        return max(1, int((self.tokens.ids[rows, :-1] != self.tokens.end).sum()))

    def row(self, k: int) -> int:
        """The row of the token table that is sequence ``k`` of the stream."""
        epoch, place = divmod(k, len(self.tokens))
        return int(self.order(epoch)[place])

    def _order(self, epoch: int) -> np.ndarray:
        """One epoch's permutation of the N rows."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.tokens))

    def state_dict(self) -> dict[str, Any]:
        """How many sequences all processes gave out: a resumed run may have others, and another micro-batch."""
        return {"sequences": self.given * self.micro_batch * ranks.world_size()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the sequences that were given out."""
        self.given = state["sequences"] // (self.micro_batch * ranks.world_size())


class HealingData(L.LightningDataModule):
    """Feeds a healing run from packed, cached tokens."""

    def __init__(self, batches: MicroBatchLoader) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> MicroBatchLoader:
        """The micro-batches that are left."""
        return self.batches
