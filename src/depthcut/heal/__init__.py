"""Healing: a short training that repairs a pruned model."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint.on_disk import ModelRun
from depthcut.record.point import Point
from depthcut.runtime.strict import Method, strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.model.surgery.sizes import SizeName

    Sizes = dict[SizeName, int] | None


class Workspace(ModelRun, Point, Protocol):
    """The run that a healing works in.

    Attributes:
        seed: seed of adapters, batch order and dropout.
        device: ``cpu`` or ``cuda``.
        base: digest of the dense model.
        base_name: name of the dense model, for people.
        layers_cut: number of whole layers that the plan drops.
    """

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def base(self) -> str: ...

    @property
    def base_name(self) -> str: ...

    @property
    def layers_cut(self) -> int: ...

    def loggers(self) -> list[Any]:
        """Return the Lightning loggers of the training."""
        ...

    def adapter_card(self, plan: Plan) -> str:
        """Return the model card of the trained adapters."""
        ...


@strict
class Heal(Method, ABC):
    """Heals a pruned model.

    Attributes:
        trains: whether it changes the model; if so, it reads ``data.train`` and the seed.
        bases: the values of ``model.quantise`` that it can train on.
        needs_plain_layers: whether it refuses a model with filled gaps.
        leaves: the result, which names its folder: ``adapter`` or ``weights``; empty for none.
    """

    trains: ClassVar[bool]
    bases: ClassVar[tuple[str, ...]]
    leaves: ClassVar[str]
    needs_plain_layers: ClassVar[bool] = False

    @property
    @abstractmethod
    def sequences(self) -> int:
        """Number of sequences of ``data.train`` to read."""

    @property
    def text_length(self) -> int | None:
        """Tokens per sequence of ``data.train``; None if the recipe does not say."""
        return None

    @property
    def shards(self) -> bool:
        """Whether several processes would each hold a shard of the model."""
        return False

    def check_shards(self) -> None:
        """Check the options of a recipe that shards the model.

        Raises:
            UserError: if one does not work with shards.
        """

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded across the processes that heal it."""
        return False

    @property
    def keeps_dense(self) -> bool:
        """Whether the dense model stays in memory during the training."""
        return False

    @property
    def heals_control(self) -> bool:
        """Whether to heal the dense model in the same way, as a control."""
        return False

    def healed_sizes(self, workspace: "Workspace", plan: Plan, pruned: "Sizes") -> "Sizes":
        """Return the sizes of the healed model, given those of the pruned one; None if they are not known yet."""
        del workspace, plan
        return pruned

    def content(self, workspace: "Workspace") -> Any:
        """Return the inputs other than the options, for the point's digest; None if there are none.

        Raises:
            UserError: if an input is missing or does not fit. Nothing heavy is loaded yet.
        """
        del workspace
        return None

    def prepare(self, workspace: "Workspace") -> None:
        """Check the requirements on the model, before a weight is loaded.

        Raises:
            UserError: if the model does not meet them.
        """
        del workspace

    @abstractmethod
    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Heal ``model``, or attach the result of an earlier run; resume from its own checkpoint if there is one."""
