"""One run: the experiment, its model, its texts, and the record that fills up."""

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
    """One run at work; to each group it is what the group's protocol asks for.

    Attributes:
        experiment: the composed config, checked.
        checkpoint: the dense model on disk.
        cache: the folder for what does not depend on the point, by content; shared by all runs.
        study: the folder of the study; the point's folder is in it.
        settled: what ``model.quantise=auto`` resolved to, and why.
        numbers: the flat record.
        measured: for each stage the evaluations whose numbers are in, with those of earlier runs.
        remarks: the last lines that the run prints.
        plan: the layers to drop, once they are chosen.
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
        """Name of the point."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digests.point_digest(self)

    @property
    def base(self) -> str:
        """Digest of the dense model as it is measured."""
        return digests.base_digest(self)

    def key(self, plan: Plan) -> str:
        """Return the digest of what ``plan`` leaves, with its replacement: the name under which that is cached."""
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
        """The token between documents; None: the tokenizer's own end of text."""
        return self.checkpoint.separator

    @property
    def asked_device(self) -> str:
        """``auto``, ``cpu`` or ``cuda``, as the config has it."""
        return self.experiment.device

    @property
    def scored(self) -> bool:
        """Whether the plan depends on the metric's scores."""
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
        """The model's sizes as the pruner needs them, computed only if they matter."""
        return self._sizes

    @cached_property
    def _sizes(self) -> ModelSize:
        prune = self.experiment.prune
        return self.dense.sizes(prune.unit) if prune.needs_weights else ModelSize(self.checkpoint.depth)

    @property
    def layers_cut(self) -> int:
        """How many whole layers the pruner will drop."""
        prune = self.experiment.prune
        return prune.count(self.sizes) if prune.unit == "layer" else 0

    def wanted(self) -> tuple[range, int]:
        """Return where the block to drop may start, and its size."""
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
        """Keep the plan, as one of this model, and log it before anything is loaded for it."""
        self.plan = replace(plan, model=self.checkpoint.digest)
        log.info("plan: %s", self.plan.words)
        if self.plan.surest:
            log.info("which start wins in a bootstrap over the samples: %s", self.plan.surest)
        if not ranks.global_rank():
            self.plan.write(self.folder / "plan.json")
        return self.plan

    def run_sharded(
        self, plan: Plan | None, model: "Callable[[], nn.Module]", work: "Callable[[Callable[[], nn.Module]], object]"
    ) -> None:
        """Do ``work``, which runs the model that ``plan`` left if its result is not on disk.

        On a sharded model the first process does it, with the help of the others, which then find it on disk.

        Raises:
            UserError: if an evaluation needs the whole model on one GPU.
        """
        if not self.dense.is_sharded(plan):
            work(model)
            return
        for name, evaluation in self.experiment.eval.items():
            if evaluation.needs_whole:
                raise UserError(
                    f"eval.{name} needs the whole model on one GPU, and this one is sharded across processes: "
                    "leave that out, or take stream=never"
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
    """Open the model on disk and set up the run; neither torch nor a weight is loaded."""
    outputs = Path(x.outputs)
    checkpoint = x.model.open(cache := outputs / "cache")
    x.prune.check(checkpoint)
    x, settled = auto_quantise.resolve_quantise(x, checkpoint, cache)
    run = Run(x, checkpoint, cache, outputs / x.name, settled)
    x.replace.check(x.prune.unit, x.prune.count(run.sizes))  # either may refuse a cut
    checkpoint.unit_prefix(x.prune.unit)  # and sublayers that the layers do not have
    return run
