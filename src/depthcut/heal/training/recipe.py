"""The knobs that healing methods share: how they train, and where their adapters sit."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, Strict, ValidationInfo, field_validator
from typing_extensions import override

from depthcut.cut.plan import Plan, layer_spans
from depthcut.heal.training.warm_start import WarmStart
from depthcut.runtime import ranks
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import Rank, strict

if TYPE_CHECKING:
    from depthcut.heal import Workspace

LAYER_TYPE_KEYS = ("layer_types", "block_types", "layers_block_type")
STATEFUL_KEYS = re.compile(
    "mamba|ssm_|state_size|lru_|linear_(conv|key|value)|conv_(kernel|L_cache|bias)|rescale_every"
)
"""Config keys of layers with a state."""
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@strict
class TrainingRecipe:
    """How the weights are trained.

    Attributes:
        steps: optimiser steps.
        batch: sequences a step, over all devices and micro-batches.
        micro_batch: sequences a forward pass; it divides ``batch``. It changes speed and memory, not the batch;
            ``auto``: what is quickest and fits the memory.
        length: tokens a sequence.
        lr: peak learning rate; cosine schedule down to 0 after ``warmup`` steps.
        betas: of AdamW: how much of the gradient's first and second moment a step keeps.
        weight_decay: of AdamW, on matrices; norms and biases are left alone.
        warmup: steps in which the learning rate rises; in a config also a share of ``steps``.
        clip: largest gradient norm; 0 clips nothing.
        optimiser: torch's AdamW, or bitsandbytes' paged 8-bit one.
        recompute: how many layers compute their activations again in the backward pass instead of keeping them.
        compile: have layers compiled; ``auto``: on a GPU, where the run is long enough to pay for it.
        save_every: steps between two checkpoints.
        packing: whether tokens attend to the documents before their own in a row: ``crossed``, as published; or
            ``separate``: they do not, positions start again, and no document's first token is predicted.
        strategy: how several processes hold the model: ``ddp``: each all of it; ``fsdp``: each a share of its layers,
            put together layer by layer as they run, in 16 or 32 bits.
        control: also heal the dense model alike, and record its numbers as ``control/...``.
        runs_all: whether the layers behind the last one that is trained are run, and the head.
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
        """Refuse what is no share of the moment before."""
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"must be two numbers in [0, 1), got {list(betas)}")
        return betas

    @field_validator("warmup", mode="before")
    @classmethod
    def count_steps(cls, warmup: Any, others: ValidationInfo) -> Any:
        """Turn a share of the steps into steps."""
        share = isinstance(warmup, float) and 0 <= warmup < 1
        return round(warmup * others.data["steps"]) if share and "steps" in others.data else warmup

    @field_validator("warmup")
    @classmethod
    def reaches_the_peak(cls, warmup: int, others: ValidationInfo) -> int:
        """Refuse a warm-up that ends with the run, or later: the rate would not come to its peak, or not down again."""
        if warmup and warmup >= (steps := others.data.get("steps", warmup + 1)):
            raise UserError(f"must be below heal.steps ({steps}), or a share of them such as 0.05, got {warmup}")
        return warmup

    @property
    def logits(self) -> int:
        """How often the logits of a chunk of positions are in memory at a time, in float32: as such, their logarithms,
        gradients.
        """
        return 3

    @property
    def sequences(self) -> int:
        """Sequences in all."""
        return self.steps * self.batch

    def content(self, workspace: "Workspace") -> Any:
        """What counts only where it is used: documents that are kept apart.

        Raises:
            UserError: if the model cannot keep them apart.
        """
        if self.packing == "crossed":
            return None
        described = workspace.dense.checkpoint.files.read_json("config.json")
        if carrying := find_stateful_layers(described.get("text_config") or described):
            raise UserError(
                f"heal.packing=separate: {described.get('model_type')} has layers that carry a state from one document "
                f"of a row to the next ({carrying}); take heal.packing=crossed"
            )
        return {"packing": self.packing}

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share of the model."""
        return self.strategy == "fsdp" and ranks.world_size() > 1

    def __post_init__(self) -> None:
        if self.control:
            self._check_control()
        among = f" among {ranks.world_size()} processes" if ranks.world_size() > 1 else ""
        if self.micro_batch == "auto" and self.batch % ranks.world_size():
            raise UserError(f"heal.batch must be divided{among}, got {self.batch}")
        if self.micro_batch != "auto" and self.batch % (self.micro_batch * ranks.world_size()):
            raise UserError(f"heal.micro_batch must divide heal.batch ({self.batch}){among}, got {self.micro_batch}")

    def _check_control(self) -> None:
        """Refuse a control of what needs a cut, or narrows the model itself, or starts from another cut."""
        needs = {"layers": "all", "init_from": None, "ratio": None}
        for key, wanted in needs.items():
            if (got := getattr(self, key, wanted)) != wanted:
                raise UserError(f"heal.control=true heals a model without a cut, which heal.{key}={got} does not fit")
        if ranks.world_size() > 1:
            raise UserError("heal.control=true runs in one process; heal prune=plan prune.drop=[] as a point instead")


@strict
class LowRankRecipe(TrainingRecipe):
    """Training low-rank adapters on frozen weights: where they sit, and how large they are.

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapters' input.
        modules: which linear layers of each decoder layer get one.
        layers: which decoder layers do: all that are left, or those behind the first gap. What is in front of it is
            then the dense model still: no gradient goes there, and the models of several cuts share it.
    """

    rank: Rank
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share
    modules: Literal["ffn", "attention", "all"]
    layers: Literal["all", "after_cut"]
    leaves: ClassVar[str] = "adapter"

    def reached(self, plan: Plan, left: int) -> Sequence[int]:
        """Which of the ``left`` layers of the pruned model get adapters; with nothing missing none is behind it."""
        return range(left) if self.layers == "all" else range(min(plan.drop, default=left), left)

    def origin(self, workspace: "Workspace") -> WarmStart | None:
        """The point whose adapters these start from; None: they start fresh."""
        del workspace
        return None


@strict
class AdapterRecipe(LowRankRecipe):
    """Adapters that may sit next to the gaps alone, and may go on from those of another cut.

    Attributes:
        layers: also ``around_cut``: the layers next to each gap, and what stands in it.
        reach: for ``around_cut``, how many on each side of a gap.
        init_from: the folder of a point of this model, or the start of its digest: layers that both cuts keep start
            from its adapters, by their number in the dense model, the others fresh. None: all start fresh.
    """

    layers: Literal["all", "after_cut", "around_cut"]  # pyright: ignore[reportIncompatibleVariableOverride]
    reach: Positive
    init_from: PathText | None
    incidental: ClassVar[frozenset[str]] = frozenset({"reach", "init_from"})

    @override
    def reached(self, plan: Plan, left: int) -> Sequence[int]:
        return (
            layers_around_gaps(plan, left, self.reach) if self.layers == "around_cut" else super().reached(plan, left)
        )

    @override
    def origin(self, workspace: "Workspace") -> WarmStart | None:
        return WarmStart.found(self.init_from, workspace) if self.init_from is not None else None

    def content(self, workspace: "Workspace") -> Any:
        """What counts only where it is used: how far around the gaps, and the adapters that these start from.

        Raises:
            UserError: if these cannot be had, or do not fit.
        """
        content: dict[str, Any] = {"reach": self.reach} if self.layers == "around_cut" else {}
        content |= super().content(workspace) or {}
        if origin := self.origin(workspace):
            content["init_from"] = origin.content
        return content or None


def find_stateful_layers(described: dict[str, Any]) -> str | None:
    """What in a model's config says that some layers carry a state, or neighbours, from token to token, if any does."""
    kinds = {str(kind) for key in LAYER_TYPE_KEYS for kind in described.get(key) or ()}
    odd = [each for each in sorted(kinds) if each == "linear_attention" or not each.endswith("attention")]
    return next(iter([*odd, *filter(STATEFUL_KEYS.match, described)]), None)


def layers_around_gaps(plan: Plan, left: int, reach: int) -> list[int]:
    """Of the ``left`` layers of a pruned model those next to its gaps, ``reach`` on each side, and what fills a gap."""
    gaps = layer_spans(plan.drop)
    moved = 0  # by how much a layer's number differs from the one that it had
    found: set[int] = set()
    for start, stop in gaps:
        filled = stop - start if left == plan.depth else (left - len(plan.keep)) // len(gaps)
        found.update(range(start + moved - reach, start + moved + filled + reach))
        moved += filled - (stop - start)
    return sorted(found & set(range(left)))
