"""The training of replacement layers: options, state, checkpoint."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from depthcut.runtime import resume, store
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    pass

log = logging.getLogger("depthcut")

BETAS = (0.9, 0.95)


class LayerFit(Protocol):
    """Options of the training; :class:`depthcut.replace.layer.Layer` documents each."""

    @property
    def steps(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def lr_end(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def save_every(self) -> int: ...

    @property
    def sequences(self) -> int: ...


class LayerTraining:
    """Student layers and the state of their training.

    Attributes:
        students: by the first layer of each gap.
        step: number of steps done.
        first: squared error of the first batch.
        last: squared error of the batch of the last step.
    """

    def __init__(self, students: dict[int, nn.Module], recipe: LayerFit) -> None:
        self.students = students
        parameters = [weight for each in students.values() for weight in each.parameters()]
        self.optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, betas=BETAS, weight_decay=recipe.weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, recipe.steps, recipe.lr_end)
        self.step, self.first, self.last = 0, math.nan, math.nan

    def made(self, error: float) -> None:
        """Step with the gradients of a batch that has this squared error.

        Raises:
            UserError: if the error or an updated weight is not finite.
        """
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()
        self.step, self.last = self.step + 1, error
        self.first = error if self.step == 1 else self.first
        weights = [weight for each in self.students.values() for weight in each.parameters()]
        if not math.isfinite(error) or not all(torch.stack([weight.isfinite().all() for weight in weights])):
            raise UserError(
                f"diverged: replace=layer has a non-finite loss at step {self.step}; use a lower replace.lr"
            )

    def write(self, path: Path) -> None:
        """Write a checkpoint with the full state for an exact resume."""
        numbers = {
            "step": self.step,
            "first": self.first,
            "last": self.last,
            resume.KEY: resume.checkpoint_identity(path.stem),
        }
        states = {name: part.state_dict() for name, part in self.parts().items()}
        with store.atomic_write(path) as temporary:
            torch.save(numbers | {"states": states}, temporary)

    def read(self, path: Path, device: str) -> None:
        """Resume from a checkpoint."""
        found: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        self.step, self.first, self.last = found["step"], found["first"], found["last"]
        for name, part in self.parts().items():
            part.load_state_dict(found["states"][name])
        log.info("replace=layer resumes at step %d: %s", self.step, path)

    def parts(self) -> dict[str, Any]:
        """Return the objects with a state, by name."""
        students = {f"layer {start}": each for start, each in self.students.items()}
        return {"optimiser": self.optimiser, "schedule": self.schedule, **students}
