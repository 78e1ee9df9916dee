"""The knobs that healing methods share: how they train, and where their adapters sit."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from depthcut import ranks
from depthcut.plan import Plan
from depthcut.strict import strict

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@strict
class Training:
    """How the weights are trained.

    Attributes:
        steps: optimiser steps.
        batch: sequences a step, over all devices and micro-batches.
        micro_batch: sequences a forward pass; it divides ``batch``. It changes speed and memory, not the batch.
        length: tokens a sequence.
        lr: peak learning rate; cosine schedule down to 0 after ``warmup`` steps.
        weight_decay: of AdamW.
        clip: largest gradient norm; 0 clips nothing.
        optimiser: torch's AdamW, or bitsandbytes' paged 8-bit one.
        recompute: recompute activations in the backward pass instead of keeping them.
        save_every: steps between two checkpoints.
    """

    steps: Positive
    batch: Positive
    micro_batch: Positive
    length: Annotated[int, Field(gt=1)]
    lr: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)]
    optimiser: Literal["adamw", "paged_adamw_8bit"]
    recompute: bool
    save_every: Positive
    incidental: ClassVar[frozenset[str]] = frozenset({"micro_batch", "recompute", "save_every"})

    @property
    def sequences(self) -> int:
        """Sequences in all."""
        return self.steps * self.batch

    def __post_init__(self) -> None:
        if self.batch % (self.micro_batch * ranks.world()):
            among = f" among {ranks.world()} processes" if ranks.world() > 1 else ""
            raise ValueError(f"heal.micro_batch must divide heal.batch ({self.batch}){among}, got {self.micro_batch}")


@strict
class LowRank(Training):
    """Training low-rank adapters on frozen weights: where they sit, and how large they are.

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapters' input.
        modules: which linear layers of each decoder layer get one.
        layers: which decoder layers do: all that are left, or those above the first gap. What is in front of the gap is
            then the dense model still: no gradient goes there, and the models of several cuts share it.
    """

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share
    modules: Literal["ffn", "attention", "all"]
    layers: Literal["all", "above"]

    def reached(self, plan: Plan, left: int) -> range:
        """Which of the ``left`` layers of the pruned model get adapters; with nothing missing none is above the gap."""
        return range(left) if self.layers == "all" else range(min(plan.drop, default=left), left)
