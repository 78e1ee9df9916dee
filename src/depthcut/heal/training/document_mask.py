"""Keeps documents in a row apart: no token attends to another document, or predicts another document's first token.

Transformers separates documents by positions that restart. Decoders that do not pass positions to their mask (OPT) get
an explicit mask. Verified with transformers 5.17 and 5.23, for scaled dot products and eager attention.

Legend: B sequences, T tokens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from depthcut.model.decoder import layers, layerwise
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.data.text.tokens import Tokens

Packing = Literal["crossed", "separate"]
PositionFinder = Callable[[Tensor], Tensor | None]
"""Maps ids, B x T, to each token's position in its document; None if each row is one document."""
EXPLICIT_MASK_MODELS = frozenset({"opt"})
"""Models whose mask ignores positions."""


def position_finder(packing: Packing, text: "Tokens") -> PositionFinder:
    """Return the function that finds documents in rows of ``text``."""
    if packing == "crossed":
        return lambda _: None
    assert text.end is not None, "a text without document boundaries"
    end = text.end
    return lambda ids_BT: document_positions(ids_BT, end)


def document_positions(ids_BT: Tensor, end: int) -> Tensor:
    """Return each token's position in its document, int64 B x T.

    A document begins at the start of a row and after each ``end``.
    """
    at_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    starts_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = ids_BT[:, :-1] == end
    starts_BT[:, 0] = True
    return at_T - torch.where(starts_BT, at_T, 0).cummax(1).values


def decoder_inputs(model: nn.Module, ids_BT: Tensor, places_BT: Tensor | None) -> dict[str, Any]:
    """Return the keyword arguments for the decoder of ``model``."""
    call: dict[str, Any] = {"input_ids": ids_BT, "use_cache": False}
    if places_BT is None:
        return call
    call["position_ids"] = places_BT
    if layers.text_config(layers.decoder_stack(model).config).model_type in EXPLICIT_MASK_MODELS:
        call["attention_mask"] = block_causal_mask(places_BT)
    return call


def block_causal_mask(places_BT: Tensor) -> Tensor:
    """Return the mask, B x 1 x T x T: a token attends to its own document and not ahead."""
    document_BT = (places_BT == 0).cumsum(1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()[:, None]


def check_document_masking(model: nn.Module) -> None:
    """Check that the inputs of each layer of ``model`` separate two documents of two tokens each.

    Raises:
        UserError: if they do not.
    """
    places_BT = torch.tensor([[0, 1, 0, 1]], device=next(model.parameters()).device)
    way = layerwise.start_forward(model, decoder_inputs(model, torch.zeros_like(places_BT), places_BT))
    for index, (args, kwargs) in enumerate(way.layer_arguments):
        masks = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.shape[-2:] == (4, 4)]
        if len(masks) != 1 or not separates_documents(masks[0]):
            kind = layers.text_config(layers.decoder_stack(model).config).model_type
            why = f"layer {index} of {kind} cannot separate documents"
            raise UserError(f"heal.packing=separate: {why}; use heal.packing=crossed")


def separates_documents(mask_BHTT: Tensor) -> bool:
    """Return whether the third of four tokens, which begins a document, attends only to itself."""
    row_T = mask_BHTT[0, 0, 2]
    open_T = row_T if row_T.dtype == torch.bool else row_T > torch.finfo(row_T.dtype).min / 2
    return open_T.tolist() == [False, False, True, False]
