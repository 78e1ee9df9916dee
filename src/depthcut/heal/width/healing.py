"""Healing that narrows: train once, store the adapters with the widths, read them back, and slice if possible."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from torch import nn

from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules
from depthcut.heal.training.fit import fit_model
from depthcut.heal.width import matched
from depthcut.heal.width.pruning import Pruning
from depthcut.heal.width.recipe import WidthRecipe
from depthcut.model.surgery import sizes as surgery_sizes
from depthcut.model.surgery.width import masks, slicing
from depthcut.model.surgery.width.widths import WIDTHS_FILE, Widths
from depthcut.runtime import ranks, verified

if TYPE_CHECKING:
    from depthcut.heal import Workspace


def train_pruned(model: nn.Module, plan: Plan, workspace: "Workspace", recipe: WidthRecipe) -> nn.Module:
    """Train and prune ``model``, unless this point is done already; return it narrower, adapters attached.

    The returned weights are always read back from disk: ``adapter/`` holds the adapters at full width, and the
    remaining widths. A quantised model keeps its width and is masked, because slicing would quantise its weights anew,
    to other values. Its export is narrower all the same.

    Raises:
        UserError: if no layer can be narrowed, or not by this much.
    """
    recipe = matched.resolve_ratio(recipe, plan, workspace)
    L.seed_everything(workspace.seed, verbose=False)
    adapted = adapter_modules.add_adapters(model, recipe, plan)
    pruning = Pruning(adapted, recipe)

    def train(folder: Path) -> None:
        with workspace.numbers.timed("heal"):
            fit_model(adapted, recipe, workspace, callbacks=[pruning])
        gc.collect()  # trainer and module form a cycle, which would keep the model in memory with the next point's
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        plan.write(folder / "plan.json")
        pruning.widths().write(folder / WIDTHS_FILE)

    folder = workspace.folder / "adapter"
    if ranks.global_rank() and not verified.is_verified(folder, workspace.digest):
        fit_model(adapted, recipe, workspace, callbacks=[pruning])  # contributes to each step
    verified.cached_folder(folder, train, workspace.digest)
    adapter_modules.load_adapters(adapted, folder)
    pruning.masks.remove()
    widths = Widths.read(folder / WIDTHS_FILE)
    if workspace.dense.quantise == "none":
        slicing.narrow_model(adapted, widths)
    else:
        masks.mask_model(adapted, widths)
    return adapted


def healed_sizes(workspace: "Workspace", plan: Plan) -> dict[surgery_sizes.SizeName, int] | None:
    """Return the sizes of the healed model once it is sliced, or None if it is not on disk."""
    widths = Widths.read_if_present(workspace.folder / "adapter")
    if widths is None:
        return None
    model = matched.pruned_skeleton(workspace, plan)
    slicing.narrow_model(model, widths)
    return surgery_sizes.model_sizes(model, workspace.dense.quantise, workspace.dense.dtype)
