"""One layer in a gap, trained to do what the dropped ones did (LLM-Streamline, arXiv:2403.19135)."""

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
    """Begins as the gap's first layer and is trained on the squared error of the stream behind the gap, by AdamW.

    The model then has one layer a gap more than the plan keeps: cut one more for as many parameters.

    Attributes:
        steps: of the optimiser.
        batch: sequences of ``data.train`` a step.
        lr: at the start, on a cosine down to ``lr_end``.
        weight_decay: of AdamW.
        save_every: steps between two checkpoints of the training; a run that is killed goes on from the last.
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
        """Sequences in all."""
        return self.steps * self.batch

    @override
    def check(self, unit: Unit, count: int) -> None:
        """Also refuse a cut of one layer, which would be replaced by itself."""
        super().check(unit, count)
        if count == 1:
            raise UserError("replace=layer puts one layer in place of several, and one is cut: cut two, or more")

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Train the layers of all gaps in one go.

        Raises:
            UserError: for a gap of one layer, which would be replaced by itself.
        """
        from depthcut.model.surgery import inserted
        from depthcut.model.surgery.filling import Filling, flatten_tensors
        from depthcut.replace.fitting import layer_distillation

        if alone := [start for start, stop in inserted.gap_spans(plan) if stop == start + 1]:
            raise UserError(
                f"replace=layer puts one layer in place of several, and layer {alone[0]} is cut alone: "
                "cut blocks of two or more, or take another replace"
            )
        trained = layer_distillation.train_layers(model, plan, site, self)
        return Filling("layers", flatten_tensors(trained), inserted.dense_config_entry(site.dense.config))

    @override
    def __call__(self, model: "nn.Module", plan: Plan, site: "Site") -> "nn.Module":
        """Fill the gaps; the training's checkpoint goes once the layers are on file."""
        from depthcut.replace.fitting import layer_distillation

        filled = super().__call__(model, plan, site)
        layer_distillation.checkpoint_path(site, plan).unlink(missing_ok=True)
        return filled
