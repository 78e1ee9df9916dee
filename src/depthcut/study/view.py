"""The protocol of a run for digests and model cards."""

from typing import TYPE_CHECKING, Any, Protocol

from depthcut.eval import Bench
from depthcut.heal import Workspace
from depthcut.log import RunInfo
from depthcut.metric import Subject
from depthcut.replace import Site

if TYPE_CHECKING:
    from depthcut.config.experiment import Experiment
    from depthcut.data.text.parts import Texts
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.checkpoint.on_disk import OnDisk
    from depthcut.model.surgery.sizes import ModelSize
    from depthcut.runtime.numbers import Numbers


class RunView(Subject, Site, Workspace, Bench, RunInfo, Protocol):
    """The protocols of all groups, and the experiment that the run executes.

    Attributes:
        experiment: the composed config, validated.
        checkpoint: the dense model on disk.
        sizes: the model's sizes for the pruner.
        dense: the dense model, and how models are loaded.
        texts: the three texts.
        numbers: the flat record.
        tokenizer: tokenizer of the model.
    """

    @property
    def experiment(self) -> "Experiment": ...

    @property
    def checkpoint(self) -> "Checkpoint": ...

    @property
    def sizes(self) -> "ModelSize": ...

    @property
    def dense(self) -> "OnDisk": ...

    @property
    def texts(self) -> "Texts": ...

    @property
    def numbers(self) -> "Numbers": ...

    @property
    def tokenizer(self) -> Any: ...
