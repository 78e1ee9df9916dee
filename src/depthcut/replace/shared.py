"""A kept layer's shared weights, with adapters and output norms per dropped layer (FlexiGPT, arXiv:2501.14713)."""

import logging
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Plan
from depthcut.replace import GapFilling
from depthcut.runtime.strict import Rank, strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.model.surgery.filling import Filling
    from depthcut.replace import Site

log = logging.getLogger("depthcut")


@strict
class Shared(GapFilling):
    """Replaces each dropped layer by the nearest kept one plus a rank-r approximation of their difference.

    The distance is summed over a layer's linear layers, squared (the paper does not say). Norms and biases stay the
    dropped layer's own. ``heal=lora`` trains the adapters and gains together with those of the kept layers.

    Attributes:
        rank: r, of the adapters and of the distance.
        gain: initial weight of the output norms, small (the paper gives no number); null for no output norm.
    """

    shares_layers: ClassVar[bool] = True
    rank: Rank
    gain: Annotated[float | None, Field(gt=0)]

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Choose the bases and initialise the adapters from unquantised weights; read no text.

        Raises:
            UserError: if the model's layers cannot share weights, or its norms undo the gain.
        """
        from depthcut.model.surgery import inserted, output_norms
        from depthcut.model.surgery.filling import Filling, flatten_tensors
        from depthcut.replace.fitting import layer_weights, weight_distance

        if self.gain is not None:
            output_norms.check_norms(model)
        bases = weight_distance.nearest_layers(plan, weight_distance.layer_distances(site, self.rank))
        log.info("layers that share: %s", ", ".join(f"{i} with {j}" for i, j in bases.items()))
        own = {
            i: self.own(
                layer_weights.read_layer_weights(site.dense, i),
                layer_weights.read_layer_weights(site.dense, j),
                layer_weights.meta_layers(site.dense)[i],
            )
            for i, j in bases.items()
        }
        more = {"bases": {str(i): j for i, j in bases.items()}, **inserted.dense_config_entry(site.dense.config)}
        return Filling("shared", flatten_tensors(own), more)

    def own(self, dropped: "dict[str, Tensor]", base: "dict[str, Tensor]", empty: "nn.Module") -> "dict[str, Tensor]":
        """Return the tensors that a shared layer owns: adapters from the SVD (eqs. 7 and 8), norms, biases."""
        import torch

        from depthcut.model.decoder import linear
        from depthcut.model.surgery import writers
        from depthcut.replace.fitting import low_rank, weight_distance

        found: dict[str, Tensor] = {}
        linears = weight_distance.shareable_linears(empty)
        for name, each in linears.items():
            difference_OI = linear.orient_weight(each, dropped[f"{name}.weight"] - base[f"{name}.weight"])
            pair = low_rank.truncated_svd(difference_OI, self.rank)
            found |= {f"{name}.own_delta.left": pair.left, f"{name}.own_delta.right": pair.right}
            if f"{name}.bias" in dropped:
                found[f"{name}.own_bias"] = dropped[f"{name}.bias"] - base[f"{name}.bias"]
            if self.gain is not None and name in writers.writer_names(empty):
                found[f"{name}.own_norm.gain"] = torch.full((len(difference_OI),), self.gain)
        return found | {name: t for name, t in dropped.items() if name.rpartition(".")[0] not in linears}
