"""One layer per gap, trained to reproduce the dropped layers (LLM-Streamline, arXiv:2403.19135)."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from depthcut.cut.plan import Plan, Unit
from depthcut.replace import GapFilling
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.model.surgery.filling import Filling
    from depthcut.replace import Site

Positive = Annotated[int, Field(gt=0)]


@strict
class Layer(GapFilling):
    """Initialised from the first dropped layer and trained by AdamW to match the hidden states after the gap.

    The loss is their squared error. The model then has one more layer per gap than the plan keeps: cut one more for
    equal parameters.

    Attributes:
        steps: optimiser steps.
        batch: sequences of ``data.train`` per step.
        lr: initial learning rate, on a cosine down to ``lr_end``.
        weight_decay: AdamW's weight decay.
        save_every: steps between checkpoints; an interrupted run resumes from the last one.
    """

    steps: Positive
    batch: Positive
    lr: Annotated[float, Field(gt=0)]
    lr_end: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    save_every: Positive
    part: ClassVar[Literal["train"]] = "train"
    incidental: ClassVar[frozenset[str]] = frozenset({"save_every"})

    @property
    @override
    def sequences(self) -> int:
        """Total number of training sequences."""
        return self.steps * self.batch

    @override
    def check(self, unit: Unit, count: int) -> None:
        """Also refuse a cut of one layer, which would be replaced by itself."""
        super().check(unit, count)
        if count == 1:
            raise UserError("replace=layer replaces several layers by one, but one is cut: cut at least two")

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Train the layers of all gaps together.

        Raises:
            UserError: for a gap of one layer, which would be replaced by itself.
        """
        from depthcut.model.surgery import inserted
        from depthcut.model.surgery.filling import Filling, flatten_tensors
        from depthcut.replace.fitting import layer_distillation

        if alone := [start for start, stop in inserted.gap_spans(plan) if stop == start + 1]:
            raise UserError(
                f"replace=layer replaces several layers by one, but layer {alone[0]} is cut alone: "
                "cut blocks of at least two, or use another replacement"
            )
        trained = layer_distillation.train_layers(model, plan, site, self)
        return Filling("layers", flatten_tensors(trained), inserted.dense_config_entry(site.dense.config))

    @override
    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Fill the gaps; delete the training checkpoint once the layers are on disk."""
        from depthcut.replace.fitting import layer_distillation

        filled = super().__call__(model, plan, site)
        layer_distillation.checkpoint_path(site, plan).unlink(missing_ok=True)
        return filled
