"""One run: the experiment, its model, its texts, and its numbers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from depthcut.cut.plan import Plan
from depthcut.data.text.parts import Texts
from depthcut.data.text.tokens import Tokens
from depthcut.model.checkpoint.on_disk import OnDisk
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune.block import Block
from depthcut.record.measured import Stage as Measurements
from depthcut.runtime import ranks
from depthcut.runtime.errors import UserError
from depthcut.runtime.numbers import Numbers
from depthcut.study import auto_quantise, card, digests

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from depthcut.config.experiment import Experiment
    from depthcut.model.checkpoint.checkpoint import Checkpoint

Stage = Literal["dense", "pruned", "healed"]
log = logging.getLogger("depthcut")


@dataclass
class Run:
    """One run in progress; it implements the protocols of all groups.

    Attributes:
        experiment: the composed config, validated.
        checkpoint: the dense model on disk.
        cache: folder of results that do not depend on the point, by content; shared by all runs.
        study: folder of the study, which contains the point's folder.
        settled: the resolved value of ``model.quantise=auto`` and the reason.
        numbers: the flat record.
        measured: evaluations of each stage, including those of earlier runs.
        remarks: lines printed at the end of the run.
        plan: the layers to drop, once chosen.
        texts: the three texts.
        dense: the dense model, and how models are loaded.
    """

    experiment: "Experiment"
    checkpoint: "Checkpoint"
    cache: Path
    study: Path
    settled: str = ""
    numbers: Numbers = field(default_factory=Numbers)
    measured: dict[str, Measurements] = field(default_factory=dict[str, Measurements])
    remarks: list[str] = field(default_factory=list[str])
    plan: Plan | None = None
    texts: Texts = field(init=False)
    dense: OnDisk = field(init=False)

    def __post_init__(self) -> None:
        x = self.experiment
        data: Any = {"calibration": x.data.calibration, "train": x.data.train, "validation": x.data.validation}
        self.texts = Texts(data, self.checkpoint, self.cache, x.heal.sequences)
        self.dense = OnDisk(
            self.checkpoint,
            x.model.quantise,
            x.model.dtype,
            x.device,
            x.stream,
            streamable=x.metric.streams,
            shardable=x.heal.sharded,
            rescored=x.prune.rescores,
            weights_cache=self.cache / "weights" if x.keep_weights else None,
            numbers=self.numbers,
        )

    @property
    def digest(self) -> str:
        """Digest of the point."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digests.point_digest(self)

    @property
    def base(self) -> str:
        """Digest of the dense model as it is measured."""
        return digests.base_digest(self)

    def key(self, plan: Plan) -> str:
        """Return the digest of the model that ``plan`` leaves, with its replacement; it is the cache key."""
        return digests.pruned_digest(self, plan)

    @property
    def folder(self) -> Path:
        """The point's own folder."""
        return self.study / self.digest

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``. Raises as :attr:`OnDisk.device`."""
        return self.dense.device

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def separator(self) -> str | None:
        """Token between documents; None: the tokenizer's end-of-text token."""
        return self.checkpoint.separator

    @property
    def asked_device(self) -> str:
        """``auto``, ``cpu`` or ``cuda``, from the config."""
        return self.experiment.device

    @property
    def scored(self) -> bool:
        """True if the plan depends on the metric's scores."""
        return self.experiment.prune.reads_scores

    @property
    def seed(self) -> int:
        """Seed of the healing."""
        return self.experiment.seed

    @property
    def config(self) -> dict[str, Any]:
        """The composed config, as plain values."""
        return self.experiment.composed

    def loggers(self) -> list[Any]:
        """Return the Lightning loggers of the healing."""
        return self.experiment.log.loggers(self)

    def adapter_card(self, plan: Plan) -> str:
        """Return the model card of the adapters that healing leaves."""
        return card.adapter_card(self, plan)

    @property
    def base_name(self) -> str:
        """Name of the dense model, for model cards."""
        return card.base_name(self)

    @property
    def sizes(self) -> ModelSize:
        """The model's sizes for the pruner, computed only if it needs them."""
        return self._sizes

    @cached_property
    def _sizes(self) -> ModelSize:
        prune = self.experiment.prune
        return self.dense.sizes(prune.unit) if prune.needs_weights else ModelSize(self.checkpoint.depth)

    @property
    def layers_cut(self) -> int:
        """Number of whole layers that the pruner will drop."""
        prune = self.experiment.prune
        return prune.count(self.sizes) if prune.unit == "layer" else 0

    def wanted(self) -> tuple[range, int]:
        """Return the range of starts of the block to drop, and its size."""
        assert isinstance(self.experiment.prune, Block)
        n = self.experiment.prune.count(self.sizes)
        return self.experiment.prune.starts(self.sizes, n), n

    def other_texts(self) -> dict[str, Callable[[], Tokens]]:
        """Return the parts of the data that choose the layers or train the model, by name."""
        x = self.experiment
        read = {"train": self.texts.train} if x.heal.trains else {}
        if x.prune.reads_scores and x.metric.reads_text:
            read["calibration"] = self.texts.calibration
        return read

    def decide(self, plan: Plan) -> Plan:
        """Set the plan, with this model's digest, and log it before weights are loaded for it."""
        self.plan = replace(plan, model=self.checkpoint.digest)
        log.info("plan: %s", self.plan.words)
        if self.plan.surest:
            log.info("share of bootstrap samples in which each start wins: %s", self.plan.surest)
        if not ranks.global_rank():
            self.plan.write(self.folder / "plan.json")
        return self.plan

    def run_sharded(
        self, plan: Plan | None, model: "Callable[[], nn.Module]", work: "Callable[[Callable[[], nn.Module]], object]"
    ) -> None:
        """Do ``work``, which runs the model that ``plan`` left unless its result is on disk.

        On a sharded model the first process does it with the help of the others, which then find the result on disk.

        Raises:
            UserError: if an evaluation needs the whole model on one GPU.
        """
        if not self.dense.is_sharded(plan):
            work(model)
            return
        for name, evaluation in self.experiment.eval.items():
            if evaluation.needs_whole:
                raise UserError(
                    f"eval.{name} needs the whole model on one GPU, but this one is sharded across processes: "
                    "remove it from eval, or use stream=never"
                )
        from depthcut.model.checkpoint import sharded

        self.dense.helped = True
        sharded.run_on_first_rank(self.device, model, work)
        self.dense.helped = False

    def subject(self, stage: Stage) -> str:
        """Return the digest of the model that a stage measures."""
        if stage == "dense":
            return self.base
        assert self.plan is not None
        return self.key(self.plan) if stage == "pruned" else self.digest


def open_run(x: "Experiment") -> Run:
    """Open the model on disk and set up the run, without loading torch or any weight."""
    outputs = Path(x.outputs)
    checkpoint = x.model.open(cache := outputs / "cache")
    x.prune.check(checkpoint)
    x, settled = auto_quantise.resolve_quantise(x, checkpoint, cache)
    run = Run(x, checkpoint, cache, outputs / x.name, settled)
    x.replace.check(x.prune.unit, x.prune.count(run.sizes))  # raises for an unsupported cut
    checkpoint.unit_prefix(x.prune.unit)  # raises for sublayers that the layers do not have
    return run
