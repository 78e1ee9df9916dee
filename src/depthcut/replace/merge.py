"""Layers merged into the one before: ``theta_l + sum_k (theta_{l+k} - theta_l)`` (LaCo, arXiv:2402.11187, RDSC)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from depthcut.cut.plan import Plan
from depthcut.replace import GapFilling
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.model.surgery.filling import Filling
    from depthcut.replace import Site


@strict
class Merge(GapFilling):
    """Merges dropped layers into the layer before them.

    Attributes:
        formula: ``paper``: add to each parameter of the layer, norms included, the differences of the dropped layers'
            from it. ``notebook``: as in the published notebooks, add to each matrix the dropped layer's difference from
            the matrix as changed so far; this leaves the last dropped layer's matrices with the layer's own norms.
    """

    formula: Literal["paper", "notebook"]
    # The digest holds the formula, through ``reads``, only if it is not the paper's.
    incidental: ClassVar[frozenset[str]] = frozenset({"formula"})

    def reads(self, site: "Site") -> Any:
        """Return the formula if it is not the paper's."""
        del site
        return None if self.formula == "paper" else {"formula": self.formula}

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Merge from unquantised weights.

        Raises:
            UserError: if no layer precedes a gap, or the parameters of a dropped layer differ in shape from those of
                the layer before.
        """
        from depthcut.model.surgery import inserted
        from depthcut.model.surgery.filling import Filling, flatten_tensors

        del model
        if plan.drop[0] == 0:
            raise UserError(
                "replace=merge merges dropped layers into the one before them, but layer 0 has none: "
                "use prune.keep_first=1"
            )
        merged = {start - 1: self.merged(start - 1, stop, site) for start, stop in inserted.gap_spans(plan)}
        return Filling("weights", flatten_tensors(merged), inserted.dense_config_entry(site.dense.config))

    def merged(self, into: int, stop: int, site: "Site") -> "dict[str, Tensor]":
        """Return the parameters of layer ``into`` with those of the layers up to ``stop`` merged into them."""
        from depthcut.replace.fitting import layer_weights

        base = layer_weights.read_layer_weights(site.dense, into)
        found = {name: tensor.clone() for name, tensor in base.items()}
        for number in range(into + 1, stop):
            other = layer_weights.read_layer_weights(site.dense, number)
            if {n: t.shape for n, t in other.items()} != {n: t.shape for n, t in base.items()}:
                raise UserError(f"replace=merge: layer {number} has other parameters than layer {into}; cut others")
            for name, tensor in other.items():
                if self.formula == "paper":
                    found[name] += tensor - base[name]
                elif tensor.ndim > 1:
                    found[name] += tensor - found[name]
        return found
