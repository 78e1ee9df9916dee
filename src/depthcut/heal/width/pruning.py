"""Pruning while healing (LoRAPrune, arXiv:2305.18403, algorithm 1): a Lightning callback for any objective.

Each step adds the importance of the groups, from the adapters' gradients before clipping, to a moving average; some
steps choose the masks anew. The checkpoint holds the averages and the masks, and the schedule follows from the step, so
an interrupted run resumes exactly.
"""

import logging
from typing import Any

import lightning as L
from peft.tuners.lora import LoraLayer
from torch import nn
from typing_extensions import override

from depthcut.heal.width import criterion, schedule, selection
from depthcut.heal.width.recipe import WidthRecipe
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.surgery.width.groups import WidthGroups, layer_groups
from depthcut.model.surgery.width.masks import Masks
from depthcut.model.surgery.width.widths import GroupKey, GroupKind, Widths
from depthcut.runtime.errors import UserError

log = logging.getLogger("depthcut")


class Pruning(L.Callback):
    """Chooses and masks groups of ``model`` while it is trained.

    Args:
        model: has adapters; a group can be removed only if all its matrices have one.
        recipe: size, selection and schedule of the pruning.

    Raises:
        UserError: if no group can be removed.
    """

    def __init__(self, model: nn.Module, recipe: WidthRecipe) -> None:
        self.recipe = recipe
        self.stack = list(decoder_layers.layer_list(model))
        self.groups = [layer_groups(layer) for layer in self.stack]
        self.free = self.adapted(recipe.free(len(self.stack)))
        if not self.free:
            raise UserError("heal=loraprune: no module that can be narrowed has adapters; use heal.modules=all")
        self.masks = Masks(self.stack, self.free)
        self.averages = criterion.MovingAverage(recipe.smoothing)

    def adapted(self, layers: range) -> dict[GroupKey, WidthGroups]:
        """Return the groups of these layers whose matrices all have adapters."""
        return {
            (number, kind): each
            for number in layers
            for kind, each in self.groups[number].items()
            if all(isinstance(linear, LoraLayer) for linear, _ in each.linears(self.stack[number]))
        }

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:  # a first attempt may have run out of memory
            self.averages = criterion.MovingAverage(self.recipe.smoothing)
            self.masks.unmask()

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.step(trainer.global_step + 1)

    def step(self, step: int) -> None:
        """Take in the gradients of a step, counted from 1; choose the masks anew if it is due."""
        recipe = self.recipe
        if step > schedule.ramp_end(recipe.steps):
            return
        found = {place: criterion.group_importance(self.stack[place[0]], each) for place, each in self.free.items()}
        self.averages.update({place_key(place): worth_G for place, worth_G in found.items()})
        if schedule.updates_masks(step, recipe.steps, recipe.prune_every) and self.averages.values:
            self.prune(schedule.share_at_step(step, recipe.steps, recipe.ratio))
        if step == schedule.ramp_end(recipe.steps):
            self.settle()

    def prune(self, share: float) -> None:
        """Mask this share of the groups."""
        worth = {place: self.averages.values[place_key(place)] for place in self.free}
        self.masks.keep(selection.select_groups(worth, share, self.recipe.selection))

    def settle(self) -> None:
        """Log the remaining widths and the number of skipped steps.

        Raises:
            UserError: if no step had finite gradients.
        """
        if not self.averages.values:
            raise UserError("heal=loraprune: no step had finite gradients; lower heal.lr, or use bfloat16")
        log.info("width: %s", self.widths().summary)
        if self.averages.skipped:
            log.warning("width: the gradients of %d steps are not finite and were skipped", self.averages.skipped)

    def widths(self) -> Widths:
        """Return the widths that the masks leave."""
        gates = self.masks.gates
        whole: list[dict[GroupKind, int]] = [
            {kind: each.count for kind, each in kinds.items()} for kinds in self.groups
        ]
        kept: list[dict[GroupKind, tuple[int, ...]]] = [
            {kind: gates[n, kind].kept if (n, kind) in gates else tuple(range(kinds[kind])) for kind in kinds}
            for n, kinds in enumerate(whole)
        ]
        return Widths(tuple(whole), tuple(kept))

    @override
    def state_dict(self) -> dict[str, Any]:
        kept = {place_key(place): list(gate.kept) for place, gate in self.masks.gates.items()}
        return {"averages": self.averages.values, "skipped": self.averages.skipped, "kept": kept}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages.values, self.averages.skipped = dict(state_dict["averages"]), state_dict["skipped"]
        for place, gate in self.masks.gates.items():
            gate.keep(state_dict["kept"][place_key(place)])


def place_key(place: GroupKey) -> str:
    """Return the name of a place in checkpoints."""
    return f"{place[0]}.{place[1]}"
