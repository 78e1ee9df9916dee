"""Checkpoints of a healing run: whole or not there, with all that an exact resume needs, and the curve beside them."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from depthcut import ranks, store
from depthcut.progress import Meter

COLUMNS = ("step", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second")


class DurableIO(TorchCheckpointIO):
    """Writes a checkpoint beside its destination, flushes it and renames it.

    Lightning's own writer goes through the system's temporary folder: across file systems that rename is a copy,
    which a kill cuts short.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with store.replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class Curve(L.Callback):
    """Keeps the loss curve, in ``heal.csv`` and on the progress line, and saves ``last.ckpt`` every few steps.

    The checkpoint carries the curve and the states of all processes' random generators (dropout), which Lightning's
    does not. With another number of processes they cannot be had again; all else can.
    """

    def __init__(self, folder: Path, save_every: int, tokens_a_step: int) -> None:
        self.folder = folder
        self.save_every = save_every
        self.tokens_a_step = tokens_a_step
        self.rows: list[list[float]] = []
        self.losses: list[torch.Tensor] = []
        self.random: list[dict[str, Any]] = []
        self.seconds_before = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.random) == ranks.world():
            random = self.random[ranks.rank()]
            torch.set_rng_state(random["cpu"])
            if torch.cuda.is_available() and random["cuda"] is not None:
                torch.cuda.set_rng_state(random["cuda"])
        self.started = time.monotonic()
        self.meter = Meter("healing", int(trainer.max_steps), trainer.global_step).__enter__()
        self.here = 0

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if len(self.losses) < trainer.accumulate_grad_batches:
            return
        self.add_row(trainer)
        if trainer.global_step % self.save_every == 0 and trainer.global_step < trainer.max_steps:
            self.write()
            trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def add_row(self, trainer: L.Trainer) -> None:
        """Note one optimiser step."""
        loss = trainer.strategy.reduce(torch.stack(self.losses).mean(), reduce_op="mean").item()
        self.losses.clear()
        self.here += 1
        seconds = time.monotonic() - self.started
        rate = self.here * self.tokens_a_step / seconds
        step = trainer.global_step
        norm = float(trainer.lightning_module.grad_norm)  # pyright: ignore[reportArgumentType]
        lr = float(trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0])
        self.rows.append([step, step * self.tokens_a_step, self.seconds_before + seconds, loss, lr, norm, rate])
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"heal/{name}": value for name, value in zip(COLUMNS, self.rows[-1], strict=True)}, step=step
            )
        self.meter.step(f"loss {loss:.3f}  {rate:,.0f} tokens/s")

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.meter.__exit__()
        self.write()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "meter"):
            self.meter.__exit__()

    def write(self) -> None:
        """Write the whole curve: a resumed run repeats no row."""
        if ranks.rank():
            return
        with store.replacing(self.folder.parent / "heal.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows([[int(row[0]), int(row[1]), *(f"{value:.6g}" for value in row[2:])] for row in self.rows])

    @override
    def state_dict(self) -> dict[str, Any]:
        mine = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        random = [mine] * ranks.world()
        if ranks.world() > 1:
            torch.distributed.all_gather_object(random, mine)
        return {"rows": self.rows, "random": random}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.random = state_dict["random"]
        self.seconds_before = self.rows[-1][2] if self.rows else 0.0
