"""Batches of a healing run: one order for every micro-batch size, and exact resume within an epoch."""

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
        rows_B: their rows in the token table, on the host.
        places_BT: position of each token in its document, if documents are kept apart; otherwise None.
        targets: mean number of predictions per micro-batch of this step; None for T - 1 per sequence.
    """

    ids_BT: Tensor
    rows_B: Tensor
    places_BT: Tensor | None = None
    targets: float | None = None

    def on(self, device: torch.device) -> "MicroBatch":
        """Return the batch on ``device``; the row numbers stay on the host, where a cached teacher looks them up."""
        places_BT = None if self.places_BT is None else self.places_BT.to(device, non_blocking=True)
        return replace(self, ids_BT=self.ids_BT.to(device, non_blocking=True), places_BT=places_BT)

    def pinned(self) -> "MicroBatch":
        """Return the batch in pinned memory, from which a GPU copies it while computing."""
        places_BT = None if self.places_BT is None else self.places_BT.pin_memory()
        return replace(self, ids_BT=self.ids_BT.pin_memory(), places_BT=places_BT)


class MicroBatchLoader:
    """Micro-batches of packed sequences in a seeded order, over as many epochs as needed.

    Sequence k of the stream is entry k mod N of its epoch's permutation, so a batch of 16 holds the same rows as four
    micro-batches of 4, from one process or from two that alternate. Lightning saves and restores :meth:`state_dict`
    with its checkpoints; a plain DataLoader would restart at its first batch.

    Args:
        tokens: N packed sequences of T tokens.
        micro_batch: sequences per batch, B.
        total: total number of micro-batches of this process.
        seed: seed of the order.
        pin: put batches into pinned memory for a GPU.
        apart: sequences per step, over all processes, if the documents of a row are kept apart; otherwise None.
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
        """Return the micro-batch that begins with sequence ``first`` of the stream."""
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
        """Return the number of predicted tokens in a step, at least 1: all but the first of each document."""
        assert self.apart is not None
        rows = [self.row(k) for k in range(step * self.apart, (step + 1) * self.apart)]
        return max(1, int((self.tokens.ids[rows, :-1] != self.tokens.end).sum()))

    def row(self, k: int) -> int:
        """Return the row of the token table that holds sequence ``k`` of the stream."""
        epoch, place = divmod(k, len(self.tokens))
        return int(self.order(epoch)[place])

    def _order(self, epoch: int) -> np.ndarray:
        """Return the permutation of the N rows in one epoch."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.tokens))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of sequences over all processes; a resumed run may have other micro-batches."""
        return {"sequences": self.given * self.micro_batch * ranks.world_size()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the sequences already used."""
        self.given = state["sequences"] // (self.micro_batch * ranks.world_size())


class HealingData(L.LightningDataModule):
    """Feeds packed, cached tokens to a healing run."""

    def __init__(self, batches: MicroBatchLoader) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> MicroBatchLoader:
        """Return the remaining micro-batches."""
        return self.batches
