"""Weights & Biases: online with a key, offline without; ``wandb sync`` sends an offline run later."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.log import Log
from depthcut.strict import strict

if TYPE_CHECKING:
    from depthcut.lab import Lab


@strict
class Wandb(Log):
    """One W&B run a point, under the point's digest as its id, so that a resumed point goes on in the same run.

    Attributes:
        project: name of the W&B project.
        entity: account or team; null takes the key's own.
    """

    project: str
    entity: str | None

    def loggers(self, lab: "Lab") -> list[Any]:
        """Lightning's logger on this run."""
        from lightning.pytorch.loggers import WandbLogger

        return [WandbLogger(experiment=self.start(lab))]

    def finish(self, lab: "Lab", record: dict[str, Any]) -> None:
        """Put the flat record into the run's summary."""
        run = self.start(lab)
        run.summary.update({key: value for key, value in record.items() if "/" in key})
        run.summary.update({"plan": record["plan"]["words"], "fraction": record["fraction"]})
        run.finish()

    def again(self, lab: "Lab", record: dict[str, Any]) -> None:
        """Report the record at once where a sweep's agent asked for it; without an agent nothing is repeated."""
        if os.environ.get("WANDB_SWEEP_ID"):
            self.finish(lab, record)

    def start(self, lab: "Lab") -> Any:
        """The W&B run of this point, started or gone on with."""
        import wandb

        if wandb.run is not None and wandb.run.id == lab.digest:
            return wandb.run
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=lab.digest,
            name=f"{lab.study.name}-{lab.digest[:6]}",
            group=lab.study.name,
            dir=lab.folder,
            resume="allow",
            mode="online" if has_key() else "offline",
            config=lab.experiment.composed,
        )


def has_key() -> bool:
    """Whether a W&B key is at hand, in the environment or in the netrc file, and nobody asked to stay offline."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))
