"""Pico models with adapters that change the output: cut, quantised, trained for a few steps."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from depthcut.cut.plan import Plan
from depthcut.data.text.parts import GivenText
from depthcut.data.text.tokens import Tokens
from depthcut.heal.training import adapter_modules
from depthcut.heal.training.lightning_module import Healing
from depthcut.heal.training.objective import next_token_loss
from depthcut.model.decoder import layers, sublayers
from depthcut.model.decoder.quantisation import Dtype
from depthcut.model.pico import Pico
from depthcut.model.surgery import gaps
from depthcut.study.standalone import Standalone
from pico import pico, randomise_lora_b, texts
from recipes import ABOVE, RECIPE, batch


def workspace(folder, device="cpu"):
    ids = np.random.default_rng(0).integers(3, 128, (12, 8)).astype(np.int32)
    text = Tokens(ids, np.full(12, 8, np.int32), np.array([], np.uint64), "x")
    return Standalone(texts=GivenText(text), folder=folder, device=device)


def pruned(model, plan: Plan):
    model = copy.deepcopy(model)
    if plan.unit == "layer":
        return layers.cut_layers(model, plan.drop)
    sublayers.remove_sublayers(model, plan)
    return model


def pruned_and_adapted(model, plan: Plan, seed: int, recipe=ABOVE):
    torch.manual_seed(seed)
    adapted = adapter_modules.add_adapters(pruned(model, plan), recipe, plan).eval()
    return randomise_lora_b(adapted, std=0.1)


def adapted_layers(adapted) -> set[int]:
    """Return the indices of the layers that hold adapters."""
    stack = layers.layer_list(adapted)
    return {n for n, layer in enumerate(stack) if any("lora_" in name for name, _ in layer.named_parameters())}


def adapted(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    model = adapter_modules.add_adapters(pico("llama", layers=4).to(dtype), RECIPE, Plan(4, ()))
    return randomise_lora_b(model, std=0.1)


def adapted_nf4(device: str, dtype: Dtype) -> torch.nn.Module:
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    files = Pico(layers=4, hidden=64, heads=2, seed=0, quantise="nf4", dtype=dtype, separator=None, heal=heal)
    with TemporaryDirectory() as cache:
        base = files.open(Path(cache)).load(None, quantise="nf4", dtype=dtype, device=device)
    return adapter_modules.add_adapters(base, RECIPE, Plan(4, ()))


def adapted_everywhere(model: Any) -> Any:
    """Add adapters to every linear layer, and change what shared layers train besides."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=names, **gaps.lora_config_kwargs(model))
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(0.02 * torch.randn_like(weight))
    return adapted.eval()


def gradient_of(model, ids) -> torch.Tensor:
    model.zero_grad()
    next_token_loss(model, batch(ids)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def train_briefly(healed) -> set[str]:
    """Take 12 steps and return the names of the trained parameters, all of which moved."""
    module = Healing(healed, RECIPE, next_token_loss)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert module.state_dict().keys() == trained.keys()
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimiser, losses = torch.optim.AdamW(trained.values(), lr=3e-3), []
    for _ in range(12):
        loss = next_token_loss(healed, batch(texts()))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(not torch.equal(p, start[name]) for name, p in trained.items())
    return set(trained)
