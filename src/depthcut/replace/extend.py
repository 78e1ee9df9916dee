"""Repeats of a span of layers: shared weights, adapters and norms of their own (FlexiGPT, arXiv:2501.14713)."""

import logging
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from depthcut.cut.plan import Plan, Unit
from depthcut.replace import GapFilling
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import Rank, strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.model.surgery.filling import Filling
    from depthcut.replace import Site

log = logging.getLogger("depthcut")


@strict
class Extend(GapFilling):
    """Repeats a span of layers (section 3.5); each repeat shares the weights, norms and biases of its original.

    Each repeat has its own rank-r adapters, initialised as the SVD of a zero difference (eqs. 7 and 8): U S is 0, and V
    any orthonormal rows. With output norms of a small gain, a repeat initially adds almost nothing, and with a gain of
    0 nothing. ``heal=lora`` trains the adapters and gains together with adapters on the original layers.

    Attributes:
        start: the first layer of the span.
        stop: the layer after the span; below 0 counted from the end, as in Python.
        times: number of times that each layer of the span runs, the original included.
        order: ``block``: each layer's repeats directly follow it; ``sequence``: the whole span repeats.
        rank: r, rank of the adapters.
        gain: initial weight of the output norms (the paper gives no number); null for no output norm.
    """

    start: Annotated[int, Field(ge=0)]
    stop: int
    times: Annotated[int, Field(ge=2)]
    order: Literal["block", "sequence"]
    rank: Rank
    gain: Annotated[float | None, Field(ge=0)]
    adds: ClassVar[bool] = True
    shares_layers: ClassVar[bool] = True
    # ``reads`` returns the resulting stack instead.
    incidental: ClassVar[frozenset[str]] = frozenset({"start", "stop", "times", "order"})

    def check(self, unit: Unit, count: int) -> None:
        """Refuse any cut."""
        del unit
        if count:
            raise UserError(f"replace=extend adds layers to the whole model, but {count} are cut; use prune.layers=0")

    def reads(self, site: "Site") -> Any:
        """Return the order of the layers; raises as :meth:`stack`."""
        return {"stack": self.stack(site.dense.depth)}

    def stack(self, depth: int) -> list[int]:
        """Return, for each layer of the extended model, the number of its original among ``depth`` layers.

        Raises:
            UserError: if the span is empty, or leaves the model.
        """
        span = range(depth)[self.start : self.stop]
        if not span or not -depth < self.stop <= depth:
            given = f"replace.start={self.start} replace.stop={self.stop}"
            raise UserError(
                f"{given} is not a span of layers 0-{depth - 1}; set its first layer, and stop after its last"
            )
        if self.order == "block":
            again = [number for number in span for _ in range(self.times)]
        else:
            again = [*span] * self.times
        return [*range(span.start), *again, *range(span.stop, depth)]

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Initialise the adapters; read neither weights nor text.

        Raises:
            UserError: if the model's layers cannot share weights, its norms undo the gain, or its layer pattern would
                break.
        """
        from depthcut.model.decoder import layers
        from depthcut.model.surgery import inserted, output_norms
        from depthcut.model.surgery.filling import Filling, flatten_tensors

        if self.gain is not None:
            output_norms.check_norms(model)
        stack = self.stack(plan.depth)
        done = f"layers from {self.start} on appear {self.times} times"
        config = layers.rearranged_config(site.dense.config, stack, done, "use another span")
        bases = {at: stack.index(number) for at, number in enumerate(stack) if stack.index(number) != at}
        log.info("layers: %d, of which %d share the weights of others", len(stack), len(bases))
        empty = layers.layer_list(layers.meta_model(config))
        own = {at: self.own(empty[at], at) for at in bases}
        more = {"bases": {str(at): base for at, base in bases.items()}, **inserted.dense_config_entry(config)}
        return Filling("shared", flatten_tensors(own), more)

    def own(self, empty: "nn.Module", seed: int) -> "dict[str, Tensor]":
        """Return the tensors that the repeat ``empty`` owns: adapters without initial effect, and output norms.

        The seed is not an option, because the rows have no effect until they are trained.
        """
        import torch

        from depthcut.model.decoder import linear
        from depthcut.model.surgery import writers
        from depthcut.replace.fitting import weight_distance

        rng = torch.Generator().manual_seed(seed)
        found: dict[str, Tensor] = {}
        for name, each in weight_distance.shareable_linears(empty).items():
            columns, rows = linear.linear_features(each)
            rank = min(self.rank, rows, columns)
            right_rn = torch.linalg.qr(torch.randn(columns, rank, generator=rng))[0].T
            found |= {f"{name}.own_delta.left": torch.zeros(rows, rank), f"{name}.own_delta.right": right_rn}
            if self.gain is not None and name in writers.writer_names(empty):
                found[f"{name}.own_norm.gain"] = torch.full((rows,), self.gain)
        return found
