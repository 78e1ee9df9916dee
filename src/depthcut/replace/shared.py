"""A kept layer's weights, shared, with low-rank adapters and output norms of its own (FlexiGPT, arXiv:2501.14713)."""

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
    """In place of each dropped layer the nearest kept one, and what of their difference a rank-r adapter can hold.

    The distance is summed over a layer's linear layers, squared (the paper does not say). Norms and biases stay the
    dropped layer's own. With ``heal=lora`` the adapters and gains are trained along with those of the kept layers.

    Attributes:
        rank: r, of the adapters and of the distance.
        gain: the output norms' weights at the start, small (the paper names no number); null: no output norm.
    """

    shares_layers: ClassVar[bool] = True
    rank: Rank
    gain: Annotated[float | None, Field(gt=0)]

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Choose the bases and start the adapters, from weights that are not quantised; no text is read.

        Raises:
            UserError: for a model whose layers cannot share, or whose norms undo the gain.
        """
        from depthcut.model.surgery import inserted, shared
        from depthcut.model.surgery.filling import Filling, flatten_tensors
        from depthcut.replace.fitting import layer_weights, weight_distance

        if self.gain is not None:
            shared.check_norms(model)
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
        """What a shared layer has of its own: adapters by SVD of the difference (eqs. 7 and 8), norms, biases."""
        import torch

        from depthcut.model.surgery import writers
        from depthcut.replace.fitting import low_rank, weight_distance

        found: dict[str, Tensor] = {}
        linear = weight_distance.shareable_linear_names(empty)
        for name in linear:
            weight = dropped[f"{name}.weight"]
            pair = low_rank.truncated_svd(weight - base[f"{name}.weight"], self.rank)
            found |= {f"{name}.own_delta.left": pair.left, f"{name}.own_delta.right": pair.right}
            if f"{name}.bias" in dropped:
                found[f"{name}.own_bias"] = dropped[f"{name}.bias"] - base[f"{name}.bias"]
            if self.gain is not None and name in writers.writer_names(empty):
                found[f"{name}.own_norm.gain"] = torch.full((len(weight),), self.gain)
        return found | {name: t for name, t in dropped.items() if name.rpartition(".")[0] not in linear}
