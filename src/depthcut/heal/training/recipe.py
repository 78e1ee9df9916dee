"""Options that all trained healing methods share."""

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, Strict, ValidationInfo, field_validator

from depthcut.runtime import ranks
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.heal import Workspace

LAYER_TYPE_KEYS = ("layer_types", "block_types", "layers_block_type")
STATEFUL_KEYS = re.compile(
    "mamba|ssm_|state_size|lru_|linear_(conv|key|value)|conv_(kernel|L_cache|bias)|rescale_every"
)
"""Config keys of stateful layers."""
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@strict
class TrainingRecipe:
    """Options of the training.

    Attributes:
        steps: optimiser steps.
        batch: sequences per step, over all devices and micro-batches.
        micro_batch: sequences per forward pass; divides ``batch`` and changes speed and memory only. ``auto`` picks the
            fastest that fits in memory.
        length: tokens per sequence.
        lr: peak learning rate; cosine schedule down to 0 after ``warmup`` steps.
        betas: AdamW's decay rates of the gradient's first and second moment.
        weight_decay: AdamW's weight decay, on matrices; norms and biases are exempt.
        warmup: steps in which the learning rate rises; a config may give a fraction of ``steps``.
        clip: maximum gradient norm; 0 disables clipping.
        optimiser: torch's AdamW, or bitsandbytes' paged 8-bit one.
        recompute: number of layers with gradient checkpointing.
        compile: whether to compile layers; ``auto``: on a GPU, if the run is long enough to pay for it.
        save_every: steps between checkpoints.
        packing: whether tokens attend to earlier documents in their row. ``crossed``: they do, as published.
            ``separate``: they do not, positions restart, and no document's first token is predicted.
        strategy: how several processes hold the model. ``ddp``: each holds all of it. ``fsdp``: each holds a shard of
            its layers, in 16 or 32 bits, gathered layer by layer as they run.
        control: also heal the dense model in the same way, and record its numbers as ``control/...``.
        runs_all: whether the layers after the last trained one, and the head, are run.
    """

    steps: Positive
    batch: Positive
    micro_batch: Positive | Literal["auto"]
    length: Annotated[int, Field(gt=1, le=10_000_000)]
    lr: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)]
    betas: Annotated[tuple[float, float], Strict(False)]  # YAML has no tuples
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)]
    optimiser: Literal["adamw", "paged_adamw_8bit"]
    recompute: Annotated[int, Field(ge=0)] | Literal["auto", "none", "all"]
    compile: bool | Literal["auto"]
    save_every: Positive
    packing: Literal["crossed", "separate"]
    strategy: Literal["ddp", "fsdp"]
    control: bool
    runs_all: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch", "recompute", "compile", "save_every", "packing", "strategy", "control"}
    )

    @field_validator("betas")
    @classmethod
    def shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
        """Refuse values outside [0, 1)."""
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"must be two numbers in [0, 1), got {list(betas)}")
        return betas

    @field_validator("warmup", mode="before")
    @classmethod
    def count_steps(cls, warmup: Any, others: ValidationInfo) -> Any:
        """Convert a fraction of the steps to steps."""
        share = isinstance(warmup, float) and 0 <= warmup < 1
        return round(warmup * others.data["steps"]) if share and "steps" in others.data else warmup

    @field_validator("warmup")
    @classmethod
    def reaches_the_peak(cls, warmup: int, others: ValidationInfo) -> int:
        """Refuse a warm-up as long as the run: the learning rate would not reach its peak, or not decrease again."""
        if warmup and warmup >= (steps := others.data.get("steps", warmup + 1)):
            raise UserError(f"must be below heal.steps ({steps}), or a fraction of them such as 0.05, got {warmup}")
        return warmup

    @property
    def logits(self) -> int:
        """Float32 copies of a chunk's logits in memory at once: the logits, log-probabilities and gradients."""
        return 3

    @property
    def sequences(self) -> int:
        """Total number of training sequences."""
        return self.steps * self.batch

    def content(self, workspace: "Workspace") -> Any:
        """Return the options that are in the digest only if used: documents that are kept apart.

        Raises:
            UserError: if the model cannot keep them apart.
        """
        if self.packing == "crossed":
            return None
        described = workspace.dense.checkpoint.files.read_json("config.json")
        if carrying := find_stateful_layers(described.get("text_config") or described):
            raise UserError(
                f"heal.packing=separate: {described.get('model_type')} has layers that carry state from one document "
                f"of a row to the next ({carrying}); use heal.packing=crossed"
            )
        return {"packing": self.packing}

    @property
    def shards(self) -> bool:
        """Whether several processes would each hold a shard of the model."""
        return self.strategy == "fsdp"

    @property
    def sharded(self) -> bool:
        """Whether each process holds a shard of the model."""
        return self.shards and ranks.world_size() > 1

    @property
    def text_length(self) -> int:
        """Tokens per sequence of ``data.train``."""
        return self.length

    @property
    def heals_control(self) -> bool:
        """Whether to heal the dense model in the same way, as a control."""
        return self.control

    @property
    def adapter_dropout(self) -> float:
        """Dropout on the input of adapters; 0 without adapters."""
        return 0.0

    def check_shards(self) -> None:
        """Check that the optimiser can train shards.

        Raises:
            UserError: if it cannot.
        """
        if self.optimiser != "adamw":
            raise UserError(
                f"heal.strategy=fsdp needs heal.optimiser=adamw, got {self.optimiser}, which cannot be sharded"
            )

    def cut_options(self) -> dict[str, Any]:
        """Return the options whose values presuppose a cut, by name."""
        return {}

    def __post_init__(self) -> None:
        if self.control:
            self._check_control()
        among = f" among {ranks.world_size()} processes" if ranks.world_size() > 1 else ""
        if self.micro_batch == "auto" and self.batch % ranks.world_size():
            raise UserError(f"heal.batch must be divided{among}, got {self.batch}")
        if self.micro_batch != "auto" and self.batch % (self.micro_batch * ranks.world_size()):
            raise UserError(f"heal.micro_batch must divide heal.batch ({self.batch}){among}, got {self.micro_batch}")

    def _check_control(self) -> None:
        """Refuse a control if the recipe needs a cut, narrows the model, or starts from another cut."""
        for key, got in self.cut_options().items():
            raise UserError(f"heal.control=true heals the uncut model, which is incompatible with heal.{key}={got}")
        if ranks.world_size() > 1:
            raise UserError("heal.control=true runs in one process; run a point with prune=plan prune.drop=[] instead")


def find_stateful_layers(described: dict[str, Any]) -> str | None:
    """Return a config entry that shows layers with a state, or a convolution, across tokens; otherwise None."""
    kinds = {str(kind) for key in LAYER_TYPE_KEYS for kind in described.get(key) or ()}
    odd = [each for each in sorted(kinds) if each == "linear_attention" or not each.endswith("attention")]
    return next(iter([*odd, *filter(STATEFUL_KEYS.match, described)]), None)
