"""Layers chosen by hand, on the command line or in a file, or the plan.json of an earlier run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator
from typing_extensions import override

from depthcut.cut.plan import DEEPEST, Plan, Unit
from depthcut.cut.spans import parse_spans
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import Prune, ScoreFunction
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.model.checkpoint.checkpoint import Checkpoint


@strict
class Given(Prune):
    """Drops the given layers.

    Attributes:
        drop: layers, and spans of layers with both ends included, such as ``[3, "11-18"]``.
        path: a JSON file instead, with at least ``{"drop": [...]}``: layers, half-open spans ``[start, stop]``, or
            ``"first-last"``. A plan that names its model fits no other.
    """

    drop: list[int | str] | None
    path: PathText | None
    reads_scores: ClassVar[bool] = False
    incidental: ClassVar[frozenset[str]] = frozenset({"drop", "path"})

    @field_validator("drop", mode="before")
    @classmethod
    def listed(cls, drop: Any) -> Any:
        """Accept one span without brackets; refuse half-open spans, which could be mistaken for inclusive ones."""
        if isinstance(drop, list) and any(isinstance(each, list) for each in drop):
            raise UserError(f"must be layers and spans with both ends, such as [3,11-18], got {drop}")
        return drop if drop is None or isinstance(drop, list) else [drop]

    def __post_init__(self) -> None:
        if (self.drop is None) == (self.path is None):
            both = "both are set" if self.path else "neither is set"
            raise UserError(f"prune=plan needs either prune.drop=[11-18] or prune.path=plan.json; {both}")
        if self.drop is not None:
            self.plan()

    def plan(self, depth: int = DEEPEST) -> Plan:
        """Return the plan for a model of ``depth`` layers.

        Raises:
            UserError: if the plan does not exist or is not a possible cut.
        """
        if self.path is not None:
            return Plan.read(Path(self.path), depth)
        try:
            return Plan(depth, parse_spans(self.drop, depth))
        except UserError as error:
            raise UserError(f"prune.drop: {error}") from None

    @property
    def unit(self) -> Unit:
        """The unit that the file names, or layers."""
        return self.plan().unit

    def content(self) -> Any:
        """Return the units to drop."""
        plan = self.plan()
        return {"unit": plan.unit, "drop": plan.drop}

    @override
    def check(self, checkpoint: "Checkpoint") -> None:
        self._fits(checkpoint.depth)
        model = self.plan(checkpoint.depth).model
        if model and model != checkpoint.digest:
            raise UserError(
                f"{self.path} was made for model {model[:8]}, this is {checkpoint.digest[:8]}. "
                'Choose the matching model, or delete "model" from the plan'
            )

    def _fits(self, depth: int) -> None:
        if (plan := self.plan(depth)).depth != depth:
            raise UserError(f"{self.path} is a plan for {plan.depth} layers; this model has {depth}")

    def count(self, shape: ModelSize) -> int:
        """Return the number of units to drop.

        Raises:
            UserError: if the plan does not exist, or is for a model of another depth.
        """
        self._fits(shape.depth)
        return len(self.plan(shape.depth).drop)

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Return the plan."""
        del score
        return self.plan(shape.depth)
