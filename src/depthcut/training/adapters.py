"""LoRA adapters on a pruned model: put on, trained once, attached from the disk (Hu et al. 2021, arXiv:2106.09685)."""

from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from depthcut import depth, store
from depthcut.plan import Plan
from depthcut.training.fit import fit
from depthcut.training.recipe import LowRank

if TYPE_CHECKING:
    from depthcut.lab import Lab

WEIGHTS = "adapter_model.safetensors"


def healed(model: nn.Module, plan: Plan, lab: "Lab", recipe: LowRank) -> PeftModel:
    """Train adapters on ``model``, unless this point's are trained already; return the model with them attached.

    What is returned always holds the weights that were read back from the disk, so what is measured is what is kept.
    """
    L.seed_everything(lab.experiment.seed, verbose=False)
    adapted = adapt(model, recipe)

    def train(folder: Path) -> None:
        with lab.timed("heal"):
            fit(adapted, recipe, lab)
        # Asked to look after embeddings, peft would look for the base on the hub; it names no base, because the whole
        # model under these adapters would be the wrong one.
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        plan.write(folder / "plan.json")

    folder = store.kept(lab.folder / "adapter", train)
    attach(adapted, folder)
    return adapted


def adapt(model: nn.Module, recipe: LowRank) -> PeftModel:
    """Freeze ``model`` and put fresh adapters (B = 0) on the linear layers that the recipe names."""
    assert isinstance(model, PreTrainedModel)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]  a float works, and alpha / r may be one
        lora_dropout=recipe.dropout,
        target_modules=linear_names(model, recipe.modules),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def attach(adapted: PeftModel, folder: Path) -> None:
    """Read the adapters of ``folder`` into ``adapted``."""
    outcome = set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
    assert not outcome.unexpected_keys, outcome.unexpected_keys
    adapted.eval()


def linear_names(model: nn.Module, which: str) -> list[str]:
    """Names of the linear layers within a decoder layer, such as ``mlp.up_proj``: attention, ffn (the rest), or all.

    Raises:
        ValueError: if there is none.
    """
    layers = depth.layers(model)
    names = sorted({name for layer in layers for name, module in layer.named_modules() if is_linear(module)})
    attention = [name for name in names if "attn" in name or "attention" in name]
    chosen = {"all": names, "attention": attention, "ffn": [name for name in names if name not in attention]}[which]
    if not chosen:
        there = ", ".join(names) or "none"
        raise ValueError(f"heal.modules={which}: no such linear layer in this model; there are: {there}")
    return chosen


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can sit on ``module`` (bitsandbytes' quantised layers are ``nn.Linear`` too)."""
    return isinstance(module, nn.Linear)
