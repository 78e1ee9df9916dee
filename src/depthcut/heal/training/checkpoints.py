"""Checkpoints of a healing run: atomic, with the full state for an exact resume and the loss curve."""

import csv
import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from depthcut.runtime import ranks, resume, store
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

PATIENCE = 5  # consecutive steps without a finite loss
FETCH_SECONDS = 2.0  # seconds; reading a loss makes the host wait for the GPU
DIVERGENCE_ADVICE = "use a lower heal.lr, a longer heal.warmup or a smaller heal.clip"
log = logging.getLogger("depthcut")
COLUMNS = ("step", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its destination, flushes it and renames it.

    Lightning's own writer goes through the system's temporary folder: across file systems that rename is a copy, which
    a kill truncates.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with store.atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class Curve(L.Callback):
    """Records the loss curve in ``heal.csv`` and on the progress line, and saves ``last.ckpt`` every few steps.

    The checkpoint holds the curve and the states of all processes' random generators (dropout), which Lightning's does
    not. With another number of processes these states cannot be restored; everything else can.
    """

    def __init__(self, folder: Path, save_every: int, tokens_a_step: int, digest: str) -> None:
        self.folder = folder
        self.digest = digest
        self.save_every = save_every
        self.tokens_a_step = tokens_a_step
        self.rows: list[list[float]] = []
        self.losses: list[torch.Tensor] = []
        self.pending: list[tuple[int, float, torch.Tensor]] = []
        self.random: list[dict[str, Any]] = []

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.random) == ranks.world_size():
            random = self.random[ranks.global_rank()]
            torch.set_rng_state(random["cpu"])
            if torch.cuda.is_available() and random["cuda"] is not None:
                torch.cuda.set_rng_state(random["cuda"])
        if trainer.global_step:
            log.info("healing resumes at step %d of %d", trainer.global_step, trainer.max_steps)
            progress = trainer.fit_loop.epoch_loop.batch_progress.current  # may count micro-batches of another size
            progress.ready = trainer.global_step * trainer.accumulate_grad_batches
            progress.completed = progress.ready - 1  # the checkpoint was written before Lightning counted the last one
        self.settled = time.monotonic()
        self.meter = Meter("healing", int(trainer.max_steps), trainer.global_step).__enter__()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if len(self.losses) < trainer.accumulate_grad_batches:
            return
        self.note(trainer)
        step = trainer.global_step
        saves = step % self.save_every == 0 and step < trainer.max_steps
        if saves or time.monotonic() - self.settled > FETCH_SECONDS:
            self.settle(trainer)
        if saves and self.sound:
            self.write()
            trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def note(self, trainer: L.Trainer) -> None:
        """Record one optimiser step; its numbers stay on the device."""
        loss = trainer.strategy.reduce(torch.stack(self.losses).mean(), reduce_op="mean")
        self.losses.clear()
        norm: Any = trainer.lightning_module.grad_norm
        lr = float(trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0])
        self.pending.append((trainer.global_step, lr, torch.stack([loss, norm.to(loss)])))

    def settle(self, trainer: L.Trainer) -> None:
        """Fetch the numbers of the recorded steps; divide the time since the last fetch evenly among them.

        Raises:
            UserError: if the loss has not been finite for several steps.
        """
        if not self.pending:
            return
        numbers = torch.stack([each for *_, each in self.pending]).tolist()
        now = time.monotonic()
        each = (now - self.settled) / len(self.pending)
        before = self.rows[-1][2] if self.rows else 0.0
        rate = self.tokens_a_step / each
        for number, ((step, lr, _), (loss, norm)) in enumerate(zip(self.pending, numbers, strict=True), 1):
            self.rows.append([step, step * self.tokens_a_step, before + number * each, loss, lr, norm, rate])
            for logger in trainer.loggers:
                values = {f"heal/{name}": value for name, value in zip(COLUMNS, self.rows[-1], strict=True)}
                logger.log_metrics(values, step=step)
            self.meter.step(f"loss {loss:.3f}  {rate:,.0f} tokens/s")
        self.pending.clear()
        self.settled = now
        if len(self.rows) >= PATIENCE and not any(math.isfinite(row[3]) for row in self.rows[-PATIENCE:]):
            self.write()
            first = next(row[0] for row in self.rows if not math.isfinite(row[3]))
            raise UserError(f"diverged: the loss is not finite since step {first:.0f}; {DIVERGENCE_ADVICE}")

    @property
    def sound(self) -> bool:
        """True if the last step's loss and gradient were finite; otherwise its weights are not worth keeping."""
        return all(math.isfinite(number) for number in (self.rows[-1][3], self.rows[-1][5]))

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.settle(trainer)
        self.meter.__exit__()
        self.write()
        log.info("healed: %s", self.summary())
        if not self.sound:
            raise UserError("diverged: the last step's loss is not finite; use a lower heal.lr or a smaller heal.clip")

    def summary(self) -> str:
        """Return the totals of the healing, for example ``64 steps, 65,536 tokens, 2 min 04 s, loss 3.521, ...``."""
        step, tokens, seconds, loss, *_ = self.rows[-1]
        minutes, rest = divmod(round(seconds), 60)
        took = f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
        return f"{step:.0f} steps, {tokens:,.0f} tokens, {took}, loss {loss:.3f}, {tokens / seconds:,.0f} tokens/s"

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "meter"):
            self.meter.__exit__()

    def write(self) -> None:
        """Write the whole curve: a resumed run repeats no row."""
        if ranks.global_rank():
            return
        with store.atomic_write(self.folder.parent / "heal.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows([[int(row[0]), int(row[1]), *(f"{value:.6g}" for value in row[2:])] for row in self.rows])

    @override
    def state_dict(self) -> dict[str, Any]:
        mine = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        random = [mine] * ranks.world_size()
        if ranks.world_size() > 1:
            torch.distributed.all_gather_object(random, mine)
        return {"rows": self.rows, "random": random}

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[resume.KEY] = resume.checkpoint_identity(self.digest)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.random = state_dict["random"]
