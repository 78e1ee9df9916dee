"""Healing: a little training that mends what the cut broke."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from depthcut.cut.plan import Plan
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.data.text.parts import Texts
    from depthcut.model.checkpoint.on_disk import OnDisk
    from depthcut.runtime.numbers import Numbers


class Workspace(Protocol):
    """The run that a healing works in.

    Attributes:
        digest: name of the point.
        folder: the point's.
        study: the folder of all points of the study.
        seed: of adapters, batch order and dropout.
        device: ``cpu`` or ``cuda``.
        dense: the dense model, and how models are loaded.
        texts: the run's texts.
        cache: the folder that all runs share.
        numbers: get the seconds.
        base: digest of the dense model.
        base_name: name of the dense model, for people.
        config: the composed config.
        layers_cut: how many whole layers the plan drops.
    """

    @property
    def digest(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def study(self) -> Path: ...

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def dense(self) -> "OnDisk": ...

    @property
    def texts(self) -> "Texts": ...

    @property
    def cache(self) -> Path: ...

    @property
    def numbers(self) -> "Numbers": ...

    @property
    def base(self) -> str: ...

    @property
    def base_name(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def layers_cut(self) -> int: ...

    def loggers(self) -> list[Any]:
        """Return the Lightning loggers of the training."""
        ...

    def adapter_card(self, plan: Plan) -> str:
        """Return the model card of the adapters that are left."""
        ...


@strict
class Heal(ABC):
    """Mends a pruned model.

    Attributes:
        trains: whether it changes the model at all; then it reads ``data.train`` and the seed.
        bases: the values of ``model.quantise`` that it can train on.
        needs_plain_layers: whether it cannot work on a model whose gaps are filled.
        leaves: what it trains, which is the name of the folder that has it: ``adapter`` or ``weights``; or nothing.
    """

    trains: ClassVar[bool]
    bases: ClassVar[tuple[str, ...]]
    leaves: ClassVar[str]
    needs_plain_layers: ClassVar[bool] = False

    @property
    @abstractmethod
    def sequences(self) -> int:
        """How many sequences of ``data.train`` it reads."""

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded across the processes that heal it."""
        return False

    def content(self, workspace: "Workspace") -> Any:
        """What it is beside its knobs, for the point's digest; None: nothing.

        Raises:
            UserError: if something that it needs cannot be had, or does not fit; nothing heavy is loaded yet.
        """
        del workspace
        return None

    def prepare(self, workspace: "Workspace") -> None:
        """Check what it needs of the model, before a weight is loaded.

        Raises:
            UserError: if the model does not have it.
        """
        del workspace

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Heal ``model``, or attach what an earlier run healed; goes on from its own checkpoint where one is left."""
