"""Requests packed into rows as trees of contexts.

Legend: B rows, T tokens, V vocabulary, P scored positions per row, S scored tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthcut.model.decoder import layers

TokenIds = tuple[int, ...]

Request = tuple[TokenIds, TokenIds]
"""The tokens of a context and of one continuation."""


@dataclass(frozen=True)
class ContextTree:
    """A context and several continuations."""

    context: TokenIds
    follows: tuple[TokenIds, ...]

    @property
    def forks(self) -> bool:
        """True if several branches have tokens to read; the last token of a branch is never read."""
        return sum(len(each) > 1 for each in self.follows) > 1

    @property
    def length(self) -> int:
        """Number of tokens to read."""
        return len(self.context) + sum(len(each) - 1 for each in self.follows)


@dataclass(frozen=True)
class PackedRequests:
    """Rows of one batch. Several scored tokens can share one of the U positions, such as the end of a context.

    Attributes:
        given: arguments of the model.
        row_BP: row of each scored position, reshaped to the rows of the batch, because GPT-2 gives hidden states the
            shape of its input. Padded with position 0 of row 0.
        place_BP: position in the row.
        at_S: for each scored token, the index of the scored position that predicts it.
        token_S: the token.
        request_S: index of its request.
        requests: the requests, in the order of these indices.
    """

    given: dict[str, Any]
    row_BP: Tensor
    place_BP: Tensor
    at_S: Tensor
    token_S: Tensor
    request_S: Tensor
    requests: list[Request]


def pack_requests(model: PreTrainedModel, requests: list[Request], batch: int) -> Iterator[PackedRequests]:
    """Pack requests into batches, longest first; requests with one context share a row if the model can read a tree."""
    contexts: dict[TokenIds, list[TokenIds]] = {}
    for context, follow in requests:
        contexts.setdefault(context, []).append(follow)
    rows = [ContextTree(context, tuple(follows)) for context, follows in contexts.items()]
    longest = max(row.length for row in rows)
    if any(row.forks for row in rows) and not supports_tree_attention(model, longest):
        rows = [ContextTree(row.context, (follow,)) for row in rows for follow in row.follows]
    rows.sort(key=lambda row: -row.length)
    device = next(model.parameters()).device
    for start in range(0, len(rows), batch):
        yield pack_trees(rows[start : start + batch], device, model.dtype)


def supports_tree_attention(model: PreTrainedModel, longest: int) -> bool:
    """Return whether the model, given a tree's mask and positions, gives the same results as for each branch alone.

    A short tree is tried. A sliding window shorter than ``longest`` tokens rules it out, because one mask serves all
    layers.
    """
    config = layers.text_config(model.config)
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size"))  # GPT-Neo has the latter
    if any(window is not None and window < longest for window in windows):
        return False
    trial = ContextTree((1, 2, 3, 1), ((2, 3, 2), (3, 1, 2)))
    device, dtype = next(model.parameters()).device, model.dtype
    alone = [ContextTree(trial.context, (follow,)) for follow in trial.follows]
    with torch.inference_mode():
        try:
            call = pack_trees([trial], device, dtype).given
            tree_TV = model(**call).logits[0]
            sequential = {"position_ids": torch.arange(trial.length, device=device)[None]}
            ignores_positions = tree_TV.equal(model(**call | sequential).logits[0])  # as MPT does
        except (ValueError, RuntimeError, TypeError):
            return False
        if ignores_positions:
            return False
        apart_BTV = model(**pack_trees(alone, device, dtype).given).logits
    wanted_TV = torch.cat([apart_BTV[0], apart_BTV[1, len(trial.context) :]])
    return bool((tree_TV - wanted_TV).abs().mean() < 0.1 * wanted_TV.std())


def pack_trees(rows: Sequence[ContextTree], device: torch.device, dtype: torch.dtype) -> PackedRequests:
    """Lay out ``rows``, padded on the right."""
    longest = max(row.length for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    places: dict[tuple[int, int], int] = {}
    scored_tokens: list[tuple[int, int, int]] = []
    requests: list[Request] = []
    for number, row in enumerate(rows):
        ids_BT[number, : row.length] = torch.tensor(tree_tokens(row))
        start = len(row.context)
        for follow in row.follows:
            before = [len(row.context) - 1, *range(start, start + len(follow) - 1)]
            for place, token in zip(before, follow, strict=True):
                at = places.setdefault((number, place), len(places))
                scored_tokens.append((at, token, len(requests)))
            requests.append((row.context, follow))
            start += len(follow) - 1
    at_S, token_S, request_S = torch.tensor(scored_tokens, device=device).T
    spare = [(0, 0)] * (-len(places) % len(rows))
    row_BP, place_BP = torch.tensor([*places, *spare], device=device).T.reshape(2, len(rows), -1)
    return PackedRequests(
        tree_inputs(rows, ids_BT, device, dtype), row_BP, place_BP, at_S, token_S, request_S, requests
    )


def tree_tokens(row: ContextTree) -> list[int]:
    """Return the tokens to read of a row: the context, and each branch without its last token."""
    return [*row.context, *(token for follow in row.follows for token in follow[:-1])]


def tree_inputs(
    rows: Sequence[ContextTree], ids_BT: Tensor, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the arguments of the model; a four-dimensional mask and positions only if a row forks."""
    longest = ids_BT.shape[1]
    inputs: dict[str, Any] = {"input_ids": ids_BT.to(device), "use_cache": False}
    if not any(row.forks for row in rows):
        lengths_B = torch.tensor([row.length for row in rows])
        mask_BT = (torch.arange(longest) < lengths_B[:, None]).long()
        return {**inputs, "attention_mask": None if mask_BT.all() else mask_BT.to(device)}
    sees_BTT = torch.zeros(len(rows), longest, longest, dtype=torch.bool)
    places_BT = torch.zeros(len(rows), longest, dtype=torch.long)  # a position table may be shorter than the padding
    for number, row in enumerate(rows):
        sees_BTT[number] = torch.eye(longest, dtype=torch.bool)  # padding must attend to something
        trunk = len(row.context)
        sees_BTT[number, : row.length, :trunk] = True
        places_BT[number, :trunk] = torch.arange(trunk)
        start = trunk
        for follow in row.follows:
            stop = start + len(follow) - 1
            sees_BTT[number, start:stop, start:stop] = True
            places_BT[number, start:stop] = torch.arange(trunk, trunk + stop - start)
            start = stop
    sees_BTT &= torch.ones(longest, longest, dtype=torch.bool).tril()
    mask_B1TT = torch.zeros(len(rows), 1, longest, longest, dtype=dtype)
    mask_B1TT.masked_fill_(~sees_BTT[:, None], torch.finfo(dtype).min)
    return {**inputs, "attention_mask": mask_B1TT.to(device), "position_ids": places_BT.to(device)}
