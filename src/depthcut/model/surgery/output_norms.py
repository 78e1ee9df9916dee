"""Output norms of shared layers: whether the model's own norms undo their gain."""

import torch
from torch import nn

from depthcut.model.decoder import inputs, layerwise
from depthcut.model.surgery import writers
from depthcut.runtime.errors import UserError


def check_norms(model: nn.Module) -> None:
    """Check that a small gain has an effect: no norm follows the output projections of shared layers.

    Raises:
        UserError: if one does, as in Gemma 2.
    """
    ids_BT = torch.ones(1, 4, dtype=torch.long)
    forward = layerwise.start_forward(model, inputs.model_inputs(model, ids_BT, ids_BT))
    if not all(writers.adds_to_stream(forward, 0, name) for name in writers.writer_names(forward.stack[0])):
        kind = type(forward.stack[0]).__name__
        raise UserError(
            f"replace.gain: {kind} normalises its sublayers' outputs before adding them; use replace.gain=null"
        )
