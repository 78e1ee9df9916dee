"""A plan out of a file: made by an earlier run, by another tool, or by hand."""

from pathlib import Path
from typing import Any, ClassVar

from depthcut.plan import Plan, Unit
from depthcut.prune import Prune, Score
from depthcut.runtime.errors import UserError
from depthcut.shape import Shape
from depthcut.strict import strict


@strict
class Given(Prune):
    """Drops what the file says.

    Attributes:
        path: a plan.json; a plan that names its model fits no other.
    """

    path: str
    reads_scores: ClassVar[bool] = False
    incidental: ClassVar[frozenset[str]] = frozenset({"path"})

    @property
    def unit(self) -> Unit:
        """What goes, as the file says.

        Raises:
            UserError: if there is no such plan.
        """
        return Plan.read(Path(self.path)).unit

    def content(self) -> Any:
        """The units that go."""
        plan = Plan.read(Path(self.path))
        return {"unit": plan.unit, "drop": plan.drop}

    def count(self, shape: Shape) -> int:
        """How many units go.

        Raises:
            UserError: if there is no such plan, or it is for a model of another depth.
        """
        plan = Plan.read(Path(self.path))
        if plan.depth != shape.depth:
            raise UserError(f"{self.path} is a plan for {plan.depth} layers; this model has {shape.depth}")
        return len(plan.drop)

    def __call__(self, score: Score, shape: Shape) -> Plan:
        """Read the plan."""
        del score, shape  # count() has compared the depth
        return Plan.read(Path(self.path))
