"""One run: the model on disk, the texts, the caches, and the record that fills up."""

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from depthcut.cut.plan import Plan, Unit
from depthcut.data import Contents, first_content
from depthcut.data.text.tokens import Tokens, check_disjoint, tokenize_source
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune.block import Block
from depthcut.record.measured import Stage as Measurements
from depthcut.runtime import devices, ranks, store
from depthcut.runtime.errors import UserError
from depthcut.study import auto_quantise, digests, measuring, preflight, sharing

if TYPE_CHECKING:
    from torch import nn

    from depthcut.config.experiment import Experiment
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.checkpoint.streaming import LayerStream
    from depthcut.model.decoder.shared_prefix import PrefixCache

Part = Literal["calibration", "train", "validation"]
Stage = Literal["dense", "pruned", "healed"]
log = logging.getLogger("depthcut")


@dataclass
class Lab:
    """One run at work.

    Attributes:
        experiment: the composed config, checked.
        checkpoint: the dense model, on the disk.
        cache: what does not depend on the point, by content; shared by all runs.
        study: the folder of the study; the point's folder is in it.
        numbers: the flat record: ``dense/...``, ``pruned/...``, ``healed/...``, ``seconds/...``, ``bytes/...``.
        measured: for each stage the evaluations whose numbers are in, with those of earlier runs.
        remarks: what the last lines of the run say.
        settled: what ``model.quantise=auto`` was taken for, and why, in words.
        helped: whether all processes are at one piece of work now, which runs a model in shares.
        contents: what each text held when it was first asked for: the run is named by it, so it may not change.
    """

    experiment: "Experiment"
    checkpoint: "Checkpoint"
    cache: Path
    study: Path
    numbers: dict[str, float] = field(default_factory=dict[str, float])
    measured: dict[str, Measurements] = field(default_factory=dict[str, Measurements])
    remarks: list[str] = field(default_factory=list[str])
    settled: str = ""
    plan: Plan | None = None
    loaded: "nn.Module | None" = None
    helped: bool = False
    opened: "LayerStream | None" = None
    texts: dict[tuple[Part, int | None], Tokens] = field(default_factory=dict[tuple[Part, int | None], Tokens])
    contents: Contents = field(default_factory=dict[str, dict[str, str]])

    @cached_property
    def digest(self) -> str:
        """Name of the point."""
        return digests.point_digest(self)

    @property
    def folder(self) -> Path:
        """The point's own folder."""
        return self.study / self.digest

    @cached_property
    def device(self) -> str:
        """``cpu`` or ``cuda``; ``auto`` takes the accelerator where there is one.

        Raises:
            UserError: if a GPU is asked for and there is none.
        """
        import torch

        there = torch.cuda.is_available()
        if self.experiment.device == "cuda" and not there:
            raise UserError("device=cuda: torch sees no GPU here. Take device=cpu, or a machine and torch with CUDA")
        return ranks.select_gpu() if there and self.experiment.device != "cpu" else "cpu"

    def load(self, plan: Plan | None = None) -> "nn.Module":
        """Load the dense model, or only what ``plan`` keeps, as ``model.quantise`` and ``model.dtype`` say."""
        model, before = self.experiment.model, self.checkpoint.bytes_read
        with self.timed("load_pruned" if plan else "load_dense"):
            keep = self.cache / "weights" if plan and self.experiment.keep_weights else None
            how: Any = {"quantise": model.quantise, "dtype": model.dtype, "device": self.device}
            shared = sharing.needs_sharding(self, plan)
            loaded = sharing.load_shard(self, plan) if shared else self.checkpoint.load(plan, **how, cache=keep)
        if plan:
            self.numbers["bytes/read"] = self.checkpoint.bytes_read - before
            self.numbers["bytes/weights"] = sum(p.numel() * p.element_size() for p in loaded.parameters())
        return loaded

    def text_identity(self, part: Part) -> Any:
        """What a part of the data will hold, by content, without reading it."""
        source = getattr(self.experiment.data, part)
        shape = [source.sequences, source.length, source.pack]
        text = source.named(first_content(self.contents, source, self.cache))
        return {"text": text, "shape": shape, "separator": self.checkpoint.separator}

    def calibration(self) -> Tokens:
        """The text that metrics read."""
        return self.text("calibration")

    def validation(self) -> Tokens:
        """The text that the loss is measured on."""
        return self.text("validation")

    def train(self) -> Tokens:
        """The text that healing reads."""
        return self.text("train", self.experiment.heal.sequences)

    def prepare(self) -> None:
        """Fetch, tokenise and check all that this point reads, before a weight is loaded.

        Raises:
            UserError: if a text or a task cannot be had, a text is too short, or a document is in two parts.
        """
        preflight.check_run(self)
        for evaluation in self.experiment.eval.values():
            evaluation.prepare(self)
        self.experiment.heal.prepare(self)
        self.experiment.replace.prepare(self)
        parts = {"validation": self.validation()}
        if self.experiment.prune.reads_scores:
            self.experiment.metric.prepare(self)
        if self.experiment.prune.reads_scores and self.experiment.metric.reads_text:
            parts["calibration"] = self.calibration()
        if self.experiment.heal.trains:
            parts["train"] = self.train()
        for part, text in self.experiment.replace.text(self).items():
            parts[part] = max(parts.get(part, text), text, key=len)
        preflight.check_tokens(self, parts)
        check_disjoint(parts)

    def text(self, part: Part, sequences: int | None = None) -> Tokens:
        """A part of the data, tokenised and packed once, kept by content."""
        if (part, sequences) not in self.texts:
            source = getattr(self.experiment.data, part)
            tokenizer, separator = self.checkpoint.tokenizer, self.checkpoint.separator
            found = tokenize_source(source, tokenizer, separator, self.cache, sequences, part)
            source.require(first_content(self.contents, source, self.cache), self.cache)
            self.texts[part, sequences] = found
        return self.texts[part, sequences]

    def dense(self) -> "nn.Module":
        """The dense model, loaded once for the metric and the evaluation."""
        if self.loaded is None:
            self.loaded = self.load()
        return self.loaded

    def release(self) -> None:
        """Give the dense model's memory back."""
        self.loaded = self.opened = None
        vars(self).pop("streams", None)

    @cached_property
    def streaming(self) -> bool:
        """Whether the metric goes through the model layer by layer, because it does not fit or was asked to."""
        asked = self.experiment.stream
        if asked != "auto" or not self.experiment.metric.streams:
            return asked == "always"
        return not devices.fits_in_free_memory(self.weigh("layer").whole["weight_bytes"], self.device)

    def streamed(self) -> "LayerStream":
        """The dense model, of which one layer is there at a time."""
        if self.opened is None:
            from depthcut.model.checkpoint.streaming import LayerStream

            self.opened = LayerStream(self)
        return self.opened

    @cached_property
    def streams(self) -> "PrefixCache":
        """What searches keep of earlier passes; where nothing is scored again, nothing."""
        from depthcut.model.decoder.shared_prefix import PrefixCache

        return PrefixCache(None if self.experiment.prune.rescores else 0)

    def weigh(self, unit: Unit) -> ModelSize:
        """What the dense model and its units weigh."""
        model = self.experiment.model
        return ModelSize.of(self.checkpoint.config, unit, model.quantise, model.dtype)

    @cached_property
    def shape(self) -> ModelSize:
        """The model as the pruner sees it, weighed only if that matters."""
        prune = self.experiment.prune
        return self.weigh(prune.unit) if prune.needs_weights else ModelSize(self.checkpoint.depth)

    def wanted(self) -> tuple[range, int]:
        """Where the block that is looked for may start, and its size."""
        assert isinstance(self.experiment.prune, Block)
        n = self.experiment.prune.count(self.shape)
        return self.experiment.prune.starts(self.shape, n), n

    def decide(self, plan: Plan) -> Plan:
        """Keep the plan, as one of this model: what goes is said in words before anything is loaded for it."""
        self.plan = replace(plan, model=self.checkpoint.digest)
        log.info("plan: %s", self.plan.words)
        if self.plan.surest:
            log.info("which start wins in a bootstrap over the samples: %s", self.plan.surest)
        if not ranks.global_rank():
            self.plan.write(self.folder / "plan.json")
        return self.plan

    def measure(self, stage: Stage, model: "Callable[[], nn.Module]") -> None:
        """Evaluate a stage, save what is on file already; ``model`` is called only where something is missing."""
        if stage not in self.experiment.stages or (stage == "healed" and not self.experiment.heal.trains):
            return
        sharing.run_with_shards(
            self, None if stage == "dense" else self.plan, model, partial(measuring.measure_stage, self, stage)
        )

    def subject(self, stage: Stage) -> str:
        """Digest of the model that a stage measures."""
        if stage == "dense":
            return digests.base_digest(self)
        assert self.plan is not None
        return digests.pruned_digest(self, self.plan) if stage == "pruned" else self.digest

    def kept(self, kind: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A JSON value of the cache, made once."""
        return store.cached_value(self.cache / kind / key, make)

    @contextmanager
    def timed(self, what: str) -> Generator[None]:
        """Add the seconds of a piece of work to the record."""
        start, key = time.monotonic(), f"seconds/{what}"
        yield
        self.numbers[key] = self.numbers.get(key, 0.0) + time.monotonic() - start


def open_run(x: "Experiment") -> Lab:
    """Open the model on the disk and set up the lab for one run; neither torch nor a weight is loaded."""
    outputs = Path(x.outputs)
    checkpoint = x.model.open(cache := outputs / "cache")
    x.prune.check(checkpoint)
    lab = auto_quantise.resolve_quantise(Lab(experiment=x, checkpoint=checkpoint, cache=cache, study=outputs / x.name))
    x.replace.check(x.prune.unit, x.prune.count(lab.shape))  # either may refuse a cut
    lab.checkpoint.unit_prefix(x.prune.unit)  # and halves that the layers do not have
    return lab
