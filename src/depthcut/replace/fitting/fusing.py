"""Fuses a map into the last weights of the MLP before the gap (ReplaceMe, arXiv:2505.02819)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.model.decoder import inputs, layerwise, linear
from depthcut.model.surgery import inserted, writers
from depthcut.model.surgery.filling import Filling
from depthcut.replace.fitting import layer_weights, least_squares
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.replace import Site


def check_fusable(model: nn.Module, plan: Plan, site: "Site") -> None:
    """Check that each gap follows an MLP whose last weights write to the residual stream.

    Raises:
        UserError: if one does not.
    """
    if plan.drop[0] == 0:
        raise UserError(
            "replace.fuse=true merges the map into the layer before the gap, but layer 0 has none: "
            "use prune.keep_first=1 or replace.fuse=false"
        )
    ids_BT, mask_BT = next(site.texts.calibration().batches(1))
    with torch.inference_mode():
        way = layerwise.start_forward(model, inputs.model_inputs(model, ids_BT, mask_BT))
        before = plan.keep.index(plan.drop[0] - 1)
        if not writers.adds_to_stream(way, before, writers.writer_names(way.stack[before])[1]):
            kind = type(way.stack[before]).__name__
            raise UserError(
                f"replace.fuse=true: {kind} normalises its MLP's output before adding it; use replace.fuse=false"
            )


def fuse_maps(fitted: dict[int, dict[str, Tensor]], site: "Site") -> Filling:
    """Return the new weights ``W <- (I + B)^T W`` and biases ``b <- (I + B)^T b``, from unquantised weights."""
    tensors: dict[str, Tensor] = {}
    empty = layer_weights.meta_layers(site.dense)[0]
    name = writers.writer_names(empty)[1]
    writer = empty.get_submodule(name)
    for start, parts in fitted.items():
        old = layer_weights.read_layer_weights(site.dense, start - 1)
        b_DD = least_squares.map_matrix(parts)
        whole_DD = (b_DD + torch.eye(len(b_DD)).to(b_DD)).T
        weight_OI = linear.orient_weight(writer, old[f"{name}.weight"]).double()
        fused_OI = (whole_DD @ weight_OI).float()
        tensors[f"{start - 1}.{name}.weight"] = linear.orient_weight(writer, fused_OI).contiguous()
        if f"{name}.bias" in old:
            tensors[f"{start - 1}.{name}.bias"] = (whole_DD @ old[f"{name}.bias"].double()).float()
    return Filling("weights", tensors, inserted.dense_config_entry(site.dense.config))
