import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from depthcut import depth, export
from depthcut.heal.lora import Lora
from depthcut.model.pico import Pico
from depthcut.plan import Plan
from depthcut.replace.none import NoReplacement
from depthcut.training import adapters
from depthcut.training.batches import Batch
from depthcut.training.module import Healing
from depthcut.training.objective import next_token
from pico import FAMILIES, awake, pico

RECIPE = Lora(
    steps=4,
    batch=2,
    micro_batch=1,
    length=8,
    lr=1e-2,
    warmup=1,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    clip=1.0,
    optimiser="adamw",
    recompute="none",
    compile=False,
    save_every=1,
    packing="crossed",
    strategy="ddp",
    control=False,
    rank=4,
    alpha=4,
    dropout=0.0,
    modules="all",
    layers="all",
    reach=2,
    init_from=None,
)
WHOLE = Plan(2, ())


def batch(ids: torch.Tensor) -> Batch:
    return Batch(ids, torch.arange(len(ids)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    model = Pico(layers=4, hidden=64, heads=2, seed=0, quantise="nf4", dtype="float32", separator=None, heal=heal)
    return model.open(tmp_path_factory.mktemp("cache"))


def nf4(checkpoint, plan: Plan | None = None):
    return checkpoint.load(plan, quantise="nf4", dtype="float32", device="cpu")


IDS = torch.arange(40).reshape(4, 10) % 256


def test_an_evaluation_does_not_spoil_the_gradients_of_a_quantised_base(checkpoint):
    """bitsandbytes repacks 4-bit weights for inference on some CPUs, and the packed product has no backward pass."""
    gradients = []
    for evaluated in (False, True):
        model = nf4(checkpoint)
        if evaluated:
            with torch.inference_mode():
                model(IDS)
        torch.manual_seed(0)
        adapted = adapters.adapt(model, RECIPE, Plan(4, ()))
        next_token(adapted, batch(IDS)).backward()
        gradients.append({name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
    first_layer = [g for name, g in gradients[0].items() if ".layers.0." in name and "lora_B" in name]
    assert all(g.abs().max() > 0 for g in first_layer)


def test_the_gradient_of_the_adapters_is_that_of_finite_differences():
    torch.manual_seed(0)
    adapted = adapters.adapt(pico("llama", layers=2), RECIPE, WHOLE)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    ids = IDS % 128
    next_token(adapted, batch(ids)).backward()
    gradients = [p.grad.clone() for p in trained]
    norm = torch.cat([g.flatten() for g in gradients]).norm()

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter += step * gradient / norm
            loss = next_token(adapted, batch(ids)).item()
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= step * gradient / norm
        return loss

    slope = (moved(1e-2) - moved(-1e-2)) / 2e-2
    assert slope == pytest.approx(norm.item(), rel=1e-3)


def test_only_the_adapters_are_trained_and_saved():
    adapted = adapters.adapt(pico("llama", layers=2), RECIPE, WHOLE)
    module = Healing(adapted, RECIPE, next_token)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert module.state_dict().keys() == trained


def test_dropout_is_on_while_it_trains():
    adapted = adapters.adapt(pico("llama", layers=2), dataclasses.replace(RECIPE, dropout=0.5), WHOLE).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    module = Healing(adapted, RECIPE, next_token)
    ids = IDS % 128
    assert module.training_step(batch(ids)).item() == module.training_step(batch(ids)).item()
    module.on_train_start()
    assert module.training_step(batch(ids)).item() != module.training_step(batch(ids)).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ffn_and_the_attention_are_told_apart_by_structure(family):
    model = depth.layers(pico(family, layers=2))
    ffn, attention = adapters.linear_names(model, "ffn"), adapters.linear_names(model, "attention")
    assert ffn and attention and not set(ffn) & set(attention)
    assert sorted(ffn + attention) == adapters.linear_names(model, "all")
    assert 2 <= len(ffn) <= 3 and all("attn" not in name for name in ffn)


def test_a_merged_export_is_what_was_trained(checkpoint, tmp_path):
    """Adapters go into dequantised weights: the logits hardly move; merged into 4-bit weights they would."""
    transformers_logging.disable_progress_bar()
    plan = Plan(4, (1,))
    torch.manual_seed(0)
    adapted = awake(adapters.adapt(nf4(checkpoint, plan), RECIPE, plan).eval())
    with torch.no_grad():
        wanted = adapted(IDS).logits
        base = nf4(checkpoint, plan)(IDS).logits
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    lab: Any = SimpleNamespace(
        folder=tmp_path,
        device="cpu",
        load=lambda plan: nf4(checkpoint, plan),
        experiment=SimpleNamespace(replace=NoReplacement()),
    )
    with torch.no_grad():
        merged = export.merged(lab, plan, lambda: adapted)(IDS).logits
        with pytest.warns(UserWarning, match="rounding errors"):
            into_4bit = copy.deepcopy(adapted).merge_and_unload()(IDS).logits

    def moved(logits: torch.Tensor) -> float:
        return ((logits - wanted).norm() / (wanted - wanted.mean()).norm()).item()

    assert moved(base) > 0.1, "the adapters must matter in this test"
    assert moved(merged) < 0.01
    assert moved(into_4bit) > 3 * moved(merged)
