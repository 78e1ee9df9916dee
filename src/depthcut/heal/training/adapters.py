"""LoRA adapters on a pruned model: attach, train once, read back from disk (Hu et al. 2021, arXiv:2106.09685)."""

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from depthcut.cut.plan import Plan
from depthcut.heal.training.adapter_modules import (
    adapted_linears,
    add_adapters,
    copy_adapters,
    load_adapters,
    put_adapters,
)
from depthcut.heal.training.fit import fit_model
from depthcut.heal.training.low_rank_recipe import LowRankRecipe
from depthcut.heal.training.objective import Objective, next_token_loss
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import linear
from depthcut.runtime import ranks, store, verified
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.heal import Workspace

log = logging.getLogger("depthcut")


def train_adapters(
    model: nn.Module, plan: Plan, workspace: "Workspace", recipe: LowRankRecipe, objective: Objective = next_token_loss
) -> nn.Module:
    """Train adapters on ``model``, unless this point's are trained already; return the model with them attached.

    The returned weights are always read back from disk, so the measured model is the stored one. If no layer gets an
    adapter, ``model`` is returned unchanged.
    """
    if not recipe.reached(plan, len(decoder_layers.layer_list(model))):
        log.info("heal.layers=%s: the pruned model has no such layer, so nothing is healed", recipe.layers)
        return model
    L.seed_everything(workspace.seed, verbose=False)
    adapted = add_adapters(model, recipe, plan)
    if origin := recipe.origin(workspace):
        copy_adapters(adapted, origin, plan)

    def train(folder: Path) -> None:
        with workspace.numbers.timed("heal"):
            fit_model(adapted, recipe, workspace, objective)
        gc.collect()  # trainer and module form a cycle, which would keep the model in memory with the next point's
        # To decide about embeddings, peft would look for the base on the hub. The base gets a name that no loader can
        # resolve, because the whole model would be the wrong base for these adapters.
        adapted.peft_config["default"].base_model_name_or_path = f"{workspace.base_name}, {plan.words}"
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        store.write_text(folder / "README.md", workspace.adapter_card(plan))
        plan.write(folder / "plan.json")

    folder = workspace.folder / "adapter"
    if ranks.global_rank() and not verified.is_verified(folder, workspace.digest):
        # Contributes to each step; the first process stores the result.
        fit_model(adapted, recipe, workspace, objective)
    verified.cached_folder(folder, train, workspace.digest)
    load_adapters(adapted, folder)
    return adapted


def check_adapters(workspace: "Workspace", recipe: LowRankRecipe) -> None:
    """Attach adapters to the model without its weights; log in one line the weights that they do not reach.

    Raises:
        UserError: if the layers have no such linear layers, peft cannot adapt them, or the rank exceeds their widths.
    """
    model = decoder_layers.meta_model(workspace.dense.config)
    parts = [linear.weight_matrices(layer, recipe.modules) for layer in decoder_layers.layer_list(model)]
    limit = max(
        min(linear.linear_features(each))
        for each in adapted_linears(list(decoder_layers.layer_list(model)), recipe.modules).values()
    )
    if recipe.rank > limit:
        raise UserError(f"heal.rank must be at most {limit}, the width of the layers it adapts, got {recipe.rank}")
    with torch.device("meta"):
        adapted = put_adapters(model, recipe, range(len(parts)))
    covered = {id(each.get_base_layer().weight) for each in adapted.modules() if isinstance(each, LoraLayer)}
    share, names = linear.uncovered_share(parts, covered)
    if names:
        of = "the layers'" if recipe.modules == "all" else f"their {recipe.modules}"
        reach = f"adapters cover {1 - share:.0%} of {of} weights"
        log.warning("heal.modules=%s: %s; not covered: %s", recipe.modules, reach, ", ".join(names))
