"""From the composed config to one frozen Experiment: every mistake is found here, before anything heavy is loaded."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_type_hints

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, StringConstraints, ValidationError

from depthcut import complaints
from depthcut.data import Source
from depthcut.eval import Eval
from depthcut.eval.harness import Harness
from depthcut.eval.likelihood import task_files
from depthcut.heal import Heal
from depthcut.log import Log
from depthcut.metric import Metric
from depthcut.model import Model
from depthcut.prune import Prune
from depthcut.replace import Replace
from depthcut.runtime.errors import UserError
from depthcut.strict import strict

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}$")]


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

    name: Name
    outputs: Annotated[str, Field(min_length=1)]
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
        if not self.model.undecided:
            self._check_base()
        if self.prune.rescores and not self.metric.rescores:
            prune, metric = (type(each).__module__.rsplit(".", 1)[-1] for each in (self.prune, self.metric))
            raise UserError(f"prune={prune} scores again what is left, which metric={metric} cannot: it runs no model")
        self._check_scores()
        if getattr(self.heal, "strategy", "ddp") == "fsdp" and not self.model.undecided:
            self._check_shares()
        if self.heal.trains and "healed" not in self.stages and self.export == "none":
            raise UserError(
                "nothing would be left of the healing: add healed to stages, or set export, or take heal=none"
            )
        if self.export == "adapter" and self.heal.leaves != "adapter":
            word = type(self.heal).__module__.rsplit(".", 1)[-1]
            raise UserError(f"export=adapter needs a heal that trains adapters; heal={word} leaves none")

    def _check_shares(self) -> None:
        """Refuse what goes wrong, without a word, with weights of which each process holds a share."""
        if self.model.quantise != "none":
            got = f"got model.quantise={self.model.quantise}"
            raise UserError(f"heal.strategy=fsdp corrupts quantised weights; take heal.strategy=ddp, {got}")
        if (optimiser := getattr(self.heal, "optimiser", "adamw")) != "adamw":
            raise UserError(f"heal.strategy=fsdp needs heal.optimiser=adamw, got {optimiser}: it knows no shares")
        if (word := type(self.replace).__module__.rpartition(".")[2]) != "none":
            raise UserError(f"heal.strategy=fsdp shares out plain layers; take replace=none, got replace={word}")

    def _check_base(self) -> None:
        """Refuse a base that the recipe cannot train on, or the metric cannot score."""
        if self.model.quantise not in self.heal.bases:
            word = type(self.heal).__module__.rsplit(".", 1)[-1]
            wanted = " or ".join(self.heal.bases)
            raise UserError(f"heal={word} needs model.quantise={wanted}, got {self.model.quantise}")
        if self.prune.reads_scores and self.model.quantise not in self.metric.bases:
            word = type(self.metric).__module__.rsplit(".", 1)[-1]
            raise UserError(
                f"metric={word} needs gradients, which model.quantise={self.model.quantise} cannot give; none can"
            )

    def _check_scores(self) -> None:
        """Refuse what the metric and the pruner cannot do together."""
        if not self.prune.reads_scores:
            return
        prune, metric = (type(each).__module__.rsplit(".", 1)[-1] for each in (self.prune, self.metric))
        if self.prune.searches and not self.metric.searches:
            raise UserError(f"prune={prune} needs a metric that values any cut, such as kl; metric={metric} does not")
        if self.prune.unit not in self.metric.units:
            there = ", ".join(self.metric.units)
            raise UserError(f"metric={metric} scores no prune.unit={self.prune.unit}; it scores: {there}")
        if self.stream == "always" and not self.metric.streams:
            raise UserError(f"stream=always: metric={metric} needs the whole model in memory; take stream=never")
        if getattr(self.metric, "until", None) is not None and prune != "block":
            raise UserError(f"metric.until stops when one block is sure; that needs prune=block, got {prune}")


def read(cfg: DictConfig) -> Experiment:
    """Check a composed config and build its methods.

    Raises:
        UserError: one line that names the key, what was wanted and what was got.
    """
    try:
        composed: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(complaints.of_omegaconf(error)) from error
    values = {key: composed[key] for key in composed if key != "experiment"}
    for group in get_type_hints(Experiment).keys() & {"model", "metric", "prune", "replace", "heal", "log"}:
        values[group] = build(group, composed[group])
    parts = {part: build(f"data.{part}", value) for part, value in composed["data"].items()}
    values["data"] = checked("data", Data, parts)
    evaluations = {
        key: value for key, value in composed["eval"].items() if isinstance(value, dict) and "_target_" in value
    }
    values["eval"] = {key: build(f"eval.{key}", value) for key, value in evaluations.items()}
    return checked("", Experiment, {**values, "composed": composed})


def require_tasks_of_command_line(x: Experiment, overrides: Sequence[str]) -> None:
    """Check that only the command line names files of lm-eval tasks: they can run code.

    Raises:
        UserError: naming a path that stands in a config file.
    """
    for each in x.eval.values():
        if isinstance(each, Harness):
            task_files.require_command_line(each.tasks, each.include_path, overrides)


def build(path: str, node: Any) -> Any:
    """Build the method at ``path``. ``_target_`` may name only a class of its group in depthcut: it is code otherwise.

    Raises:
        UserError: for a foreign target, an unknown key, a wrong type, word or range.
    """
    group = path.partition(".")[0]
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(target, str) or not target.startswith(f"depthcut.{group}."):
        raise UserError(f"{path}._target_ must name a class of depthcut.{group}, got {target}")
    refuse_nested_targets(path, node)
    try:
        cls = instantiate({"_target_": "hydra.utils.get_class", "path": target})
    except Exception as error:
        raise UserError(f"{path}._target_: there is no {target}") from error
    return checked(path, cls, {key: value for key, value in node.items() if key != "_target_"})


def refuse_nested_targets(path: str, node: dict[str, Any]) -> None:
    """A method's knobs are plain values."""
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            raise UserError(f"{path}.{key}._target_ is not allowed: a knob is a plain value")


def checked(path: str, cls: type[Any], values: dict[str, Any]) -> Any:
    """Construct ``cls``, with pydantic's complaint in one line that names the key as it is written in the config."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(complaints.of_pydantic(path, cls, error)) from error
