"""A span of layers once more, on the same weights, with adapters and norms of its own (FlexiGPT, arXiv:2501.14713)."""

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
    """Repeats a span of layers (section 3.5), each repeat on the weights, norms and biases of the layer it repeats.

    A repeat has rank-r adapters of its own, which begin as the SVD of a difference that is zero (eqs. 7 and 8): U S is
    0, and V any orthonormal rows. Together with output norms of a small gain it begins as almost nothing, and with a
    gain of 0 as nothing. With ``heal=lora`` the adapters and gains are trained along with adapters on the layers that
    were there before.

    Attributes:
        start: the first layer of the span.
        stop: the layer behind the span; below 0 counted from the end, as in Python.
        times: how often each layer of the span is there in the end.
        order: ``block``: each layer's repeats right behind it; ``sequence``: the whole span again.
        rank: r, of the adapters.
        gain: the output norms' weights at the start (the paper names no number); null: no output norm.
    """

    start: Annotated[int, Field(ge=0)]
    stop: int
    times: Annotated[int, Field(ge=2)]
    order: Literal["block", "sequence"]
    rank: Rank
    gain: Annotated[float | None, Field(ge=0)]
    adds: ClassVar[bool] = True
    shares_layers: ClassVar[bool] = True
    # What they come to is in what it reads.
    incidental: ClassVar[frozenset[str]] = frozenset({"start", "stop", "times", "order"})

    def check(self, unit: Unit, count: int) -> None:
        """Refuse a cut."""
        del unit
        if count:
            raise UserError(f"replace=extend adds layers to a whole model, and {count} are cut; take prune.layers=0")

    def reads(self, site: "Site") -> Any:
        """The order of the layers; raises as :meth:`stack`."""
        return {"stack": self.stack(site.dense.depth)}

    def stack(self, depth: int) -> list[int]:
        """For each layer of the extended model which one it is of the ``depth`` layers that there were.

        Raises:
            UserError: if the span is empty, or leaves the model.
        """
        span = range(depth)[self.start : self.stop]
        if not span or not -depth < self.stop <= depth:
            told = f"replace.start={self.start} replace.stop={self.stop}"
            raise UserError(f"{told} is no span of layers 0-{depth - 1}; give its first one, and the one behind it")
        if self.order == "block":
            again = [number for number in span for _ in range(self.times)]
        else:
            again = [*span] * self.times
        return [*range(span.start), *again, *range(span.stop, depth)]

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Start the adapters; neither a weight nor a text is read.

        Raises:
            UserError: for a model whose layers cannot share, whose norms undo the gain, or whose pattern is broken.
        """
        from depthcut.model.decoder import layers
        from depthcut.model.surgery import inserted, shared
        from depthcut.model.surgery.filling import Filling, flatten_tensors

        if self.gain is not None:
            shared.check_norms(model)
        stack = self.stack(plan.depth)
        done = f"layers {self.start} and on are there {self.times} times"
        config = layers.rearranged_config(site.dense.config, stack, done, "take another span")
        bases = {at: stack.index(number) for at, number in enumerate(stack) if stack.index(number) != at}
        log.info("layers: %d, %d of them on the weights of others", len(stack), len(bases))
        empty = layers.layer_list(layers.meta_model(config))
        own = {at: self.own(empty[at], at) for at in bases}
        more = {"bases": {str(at): base for at, base in bases.items()}, **inserted.dense_config_entry(config)}
        return Filling("shared", flatten_tensors(own), more)

    def own(self, empty: "nn.Module", seed: int) -> "dict[str, Tensor]":
        """What the repeat ``empty`` has of its own: adapters that begin as nothing, output norms.

        The seed is no knob: until they are trained the rows make no difference.
        """
        import torch

        from depthcut.model.surgery import writers
        from depthcut.replace.fitting import weight_distance

        chance = torch.Generator().manual_seed(seed)
        found: dict[str, Tensor] = {}
        for name in weight_distance.shareable_linear_names(empty):
            rows, columns = empty.get_parameter(f"{name}.weight").shape
            rank = min(self.rank, rows, columns)
            right_rn = torch.linalg.qr(torch.randn(columns, rank, generator=chance))[0].T
            found |= {f"{name}.own_delta.left": torch.zeros(rows, rank), f"{name}.own_delta.right": right_rn}
            if self.gain is not None and name in writers.writer_names(empty):
                found[f"{name}.own_norm.gain"] = torch.full((rows,), self.gain)
        return found
