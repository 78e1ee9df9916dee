"""A plan out of a file: made by an earlier run, by another tool, or by hand."""

from pathlib import Path
from typing import Any, ClassVar

from depthcut.plan import Plan
from depthcut.prune import Prune, Score
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

    def content(self) -> Any:
        """The layers that go."""
        return Plan.read(Path(self.path)).drop

    def layers(self, depth: int) -> int:
        """How many layers go.

        Raises:
            ValueError: if there is no such plan, or it is for a model of another depth.
        """
        plan = Plan.read(Path(self.path))
        if plan.depth != depth:
            raise ValueError(f"{self.path} is a plan for {plan.depth} layers; this model has {depth}")
        return len(plan.drop)

    def __call__(self, score: Score, depth: int) -> Plan:
        """Read the plan."""
        del score, depth  # layers() has compared the depth
        return Plan.read(Path(self.path))
