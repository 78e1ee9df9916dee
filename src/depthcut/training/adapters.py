"""LoRA adapters on a pruned model: put on, trained once, attached from the disk (Hu et al. 2021, arXiv:2106.09685)."""

import gc
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthcut import depth, ranks, replacing, store
from depthcut.plan import Plan
from depthcut.runtime.errors import UserError
from depthcut.study import card
from depthcut.training.fit import fit
from depthcut.training.objective import Objective, next_token
from depthcut.training.origin import Origin
from depthcut.training.recipe import LowRank

if TYPE_CHECKING:
    from depthcut.lab import Lab

WEIGHTS = "adapter_model.safetensors"
log = logging.getLogger("depthcut")


def healed(model: nn.Module, plan: Plan, lab: "Lab", recipe: LowRank, objective: Objective = next_token) -> nn.Module:
    """Train adapters on ``model``, unless this point's are trained already; return the model with them attached.

    What is returned always holds the weights that were read back from the disk, so what is measured is what is kept.
    Where no layer is to get an adapter it is ``model`` as it is.
    """
    if not recipe.reached(plan, len(depth.layers(model))):
        log.info("heal.layers=%s: the cut leaves no such layer, so there is nothing to heal", recipe.layers)
        return model
    L.seed_everything(lab.experiment.seed, verbose=False)
    adapted = adapt(model, recipe, plan)
    if origin := recipe.origin(lab):
        begin(adapted, origin, plan)

    def train(folder: Path) -> None:
        with lab.timed("heal"):
            fit(adapted, recipe, lab, objective)
        gc.collect()  # the trainer and its module hold each other, and else the model beside the next point's
        # Asked to look after embeddings, peft would look for the base on the hub. The base is named in words that no
        # loader can resolve: under these adapters the whole model would be the wrong one.
        adapted.peft_config["default"].base_model_name_or_path = f"{card.name(lab)}, {plan.words}"
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        store.write_text(folder / "README.md", card.of_adapter(lab, plan))
        plan.write(folder / "plan.json")

    folder = lab.folder / "adapter"
    if ranks.rank() and not store.verified(folder):
        fit(adapted, recipe, lab, objective)  # its share of each step; the first process keeps what comes of it
    store.kept(folder, train)
    attach(adapted, folder)
    return adapted


def adapt(model: nn.Module, recipe: LowRank, plan: Plan) -> PeftModel:
    """Freeze ``model``, which ``plan`` left, and put fresh adapters (B = 0) where the recipe says."""
    assert isinstance(model, PreTrainedModel)
    layers = depth.layers(model)
    places = recipe.reached(plan, len(layers))
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]  a float works, and alpha / r may be one
        lora_dropout=recipe.dropout,
        target_modules=linear_names([layers[index] for index in places], recipe.modules),
        layers_to_transform=list(places),
        layers_pattern=depth.prefix(model).rpartition(".")[2],
        task_type="CAUSAL_LM",
        **replacing.adapting(model),
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def begin(adapted: PeftModel, origin: Origin, plan: Plan) -> None:
    """Copy the adapters of ``origin`` into those layers of ``adapted``, which ``plan`` left, that it has too.

    Raises:
        UserError: if it has none of them, or its adapters have other shapes.
    """
    stem, own = depth.prefix(adapted), get_peft_model_state_dict(adapted, save_embedding_layers=False)
    number = {old: new for new, old in enumerate(plan.keep)}
    copied: dict[str, Tensor] = {}
    for name, tensor in load_file(origin.folder / WEIGHTS).items():
        index, rest = depth.split(name, stem) or (-1, name)
        here = f"{stem}.{number.get(origin.plan.keep[index])}.{rest}"
        if here in own:
            copied[here] = tensor
    if not copied:
        raise UserError(f"heal.init_from: no layer has adapters both in {origin.folder} and in this cut")
    for name, tensor in copied.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"heal.init_from: {name} is {list(own[name].shape)} here, {list(tensor.shape)} there")
    assert not set_peft_model_state_dict(adapted, copied).unexpected_keys
    layers = len({(depth.split(name, stem) or (0,))[0] for name in copied})
    log.info("healing starts from %s: %d layers of it, the others fresh", origin.folder, layers)


def attach(adapted: PeftModel, folder: Path) -> None:
    """Read the adapters of ``folder`` into ``adapted``."""
    outcome = set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
    assert not outcome.unexpected_keys, outcome.unexpected_keys
    adapted.eval()


def linear_names(layers: Iterable[nn.Module], which: str) -> list[str]:
    """Names of the linear layers within decoder layers, such as ``mlp.up_proj``: attention, ffn (the rest), or all.

    Raises:
        UserError: if there is none.
    """
    names = sorted({name for layer in layers for name, module in layer.named_modules() if is_linear(module)})
    attention = [name for name in names if "attn" in name or "attention" in name]
    chosen = {"all": names, "attention": attention, "ffn": [name for name in names if name not in attention]}[which]
    if not chosen:
        there = ", ".join(names) or "none"
        raise UserError(f"heal.modules={which}: no such linear layer in this model; there are: {there}")
    return chosen


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can sit on ``module`` (bitsandbytes' quantised layers are ``nn.Linear`` too)."""
    return isinstance(module, nn.Linear)
