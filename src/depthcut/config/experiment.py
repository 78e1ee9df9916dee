"""One frozen Experiment, which checks that its methods work together before anything heavy is loaded."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from depthcut.data import Source
from depthcut.eval import Eval
from depthcut.heal import Heal
from depthcut.log import Log
from depthcut.metric import Metric
from depthcut.model import Model
from depthcut.prune import Prune
from depthcut.replace import Replace
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import strict

StudyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}$")]


@strict
class Data:
    """The three texts of an experiment; no document is in two of them.

    Attributes:
        calibration: what metrics read.
        train: what healing reads.
        validation: what the loss is measured on.
    """

    calibration: Source
    train: Source
    validation: Source


@strict
class Experiment:
    """A composed config, checked. Its methods are ready to be called; ``composed`` is the plain config they came from.

    Attributes:
        name: the study.
        outputs: folder of all studies.
        seed: of the healing (adapters, batch order, dropout).
        device: ``auto`` takes the GPU where there is one.
        stream: whether the metric goes through the model layer by layer, off the disk, and a model that processes heal
            in shares is in shares all the time; ``auto``: where it does not fit.
        keep_weights: whether the pruned model's quantised weights are kept in the cache, to be loaded again in seconds.
        stages: at which of the three stages ``eval`` measures.
        export: what is left on the disk of the healed model.
    """

    name: StudyName
    outputs: PathText
    seed: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda"]
    stream: Literal["auto", "always", "never"]
    keep_weights: bool
    stages: list[Literal["dense", "pruned", "healed"]]
    export: Literal["merged", "adapter", "none"]
    model: Model
    data: Data
    metric: Metric
    prune: Prune
    replace: Replace
    heal: Heal
    eval: dict[str, Eval]
    log: Log
    composed: dict[str, Any]

    def __post_init__(self) -> None:
        if self.name == "cache":
            raise UserError("name must not be cache: OUTPUTS/cache is the cache of all studies")
        if not self.model.quantise_is_auto:
            self._check_base()
        if self.prune.rescores and not self.metric.rescores:
            prune, metric = self.prune.word, self.metric.word
            raise UserError(
                f"prune={prune} rescores the remaining layers, which metric={metric} cannot; "
                "choose another metric, such as kl"
            )
        self._check_scores()
        self._check_length()
        self._check_replacement()
        if self.heal.shards and not self.model.quantise_is_auto:
            self._check_shares()
        self._check_results()
        if self.export == "adapter" and self.heal.leaves != "adapter":
            raise UserError(f"export=adapter needs a recipe that trains adapters; heal={self.heal.word} trains none")

    def _check_results(self) -> None:
        """Refuse a run that would leave no number, no scores and no model."""
        trains, stages = self.heal.trains, {*self.stages} if self.eval else set[str]()
        left = "healed" in stages if trains else stages - {"healed"} or self.prune.reads_scores
        if not left and self.export == "none":
            what, stage = ("healing", "stages=[healed]") if trains else ("run", "a stage")
            raise UserError(f"the {what} would produce no result: set export, or have eval measure {stage}")

    def _check_replacement(self) -> None:
        """Refuse a replacement that a recipe or an evaluation cannot work with."""
        word = self.replace.word
        if self.heal.needs_plain_layers and word != "none":
            raise UserError(f"heal=loraprune narrows plain layers: it needs replace=none, got replace={word}")
        for name, evaluation in self.eval.items():
            if evaluation.needs_shared_layers and not self.replace.shares_layers:
                raise UserError(
                    f"eval={name} drafts with the model without its shared layers: "
                    f"it needs replace=shared or replace=extend, got replace={word}"
                )

    def _check_length(self) -> None:
        """Refuse rows of text of another length than healing counts with."""
        length = self.heal.text_length
        if length not in (None, self.data.train.length):
            mend = "set only heal.length, which data.train.length follows"
            raise UserError(f"data.train.length must be heal.length ({length}), got {self.data.train.length}; {mend}")

    def _check_shares(self) -> None:
        """Refuse what goes wrong, without a word, with weights of which each process holds a share."""
        if self.model.quantise != "none":
            got = f"got model.quantise={self.model.quantise}"
            raise UserError(f"heal.strategy=fsdp corrupts quantised weights: use heal.strategy=ddp, {got}")
        self.heal.check_shards()
        if (word := self.replace.word) != "none":
            raise UserError(f"heal.strategy=fsdp shards plain layers: it needs replace=none, got replace={word}")

    def _check_base(self) -> None:
        """Refuse a base that the recipe cannot train on, or the metric cannot score."""
        if self.model.quantise not in self.heal.bases:
            wanted = " or ".join(self.heal.bases)
            raise UserError(f"heal={self.heal.word} needs model.quantise={wanted}, got {self.model.quantise}")
        if self.prune.reads_scores and self.model.quantise not in self.metric.bases:
            wanted = " or ".join(self.metric.bases)
            raise UserError(f"metric={self.metric.word} needs model.quantise={wanted}, got {self.model.quantise}")

    def _check_scores(self) -> None:
        """Refuse what the metric and the pruner cannot do together."""
        if not self.prune.reads_scores:
            return
        prune, metric = self.prune.word, self.metric.word
        if self.prune.searches and not self.metric.searches:
            raise UserError(f"prune={prune} needs a metric that can score any cut, such as kl; metric={metric} cannot")
        if self.prune.unit not in self.metric.units:
            there = ", ".join(self.metric.units)
            raise UserError(f"metric={metric} cannot score prune.unit={self.prune.unit}; it can score: {there}")
        if self.stream == "always" and not self.metric.streams:
            raise UserError(f"stream=always: metric={metric} needs the whole model in memory; use stream=never")
        if self.metric.stops_early and prune != "block":
            raise UserError(f"metric.until stops once one block is certain: it needs prune=block, got {prune}")
