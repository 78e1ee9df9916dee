import copy
import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules, adapters, full_finetune, lean_lora
from depthcut.heal.training.lightning_module import Healing
from depthcut.heal.training.objective import next_token_loss
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import merging
from depthcut.model.pico import Pico
from depthcut.runtime.errors import UserError
from depthcut.study import export
from depthcut.study.standalone import Standalone
from pico import FAMILIES, pico, picture_model, randomise_lora_b
from recipes import RECIPE, batch

WHOLE = Plan(2, ())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    model = Pico(layers=4, hidden=64, heads=2, seed=0, quantise="nf4", dtype="float32", separator=None, heal=heal)
    return model.open(tmp_path_factory.mktemp("cache"))


def nf4(checkpoint, plan: Plan | None = None):
    return checkpoint.load(plan, quantise="nf4", dtype="float32", device="cpu")


IDS = torch.arange(40).reshape(4, 10) % 256


def test_evaluation_keeps_gradients_of_a_quantised_base(checkpoint):
    """bitsandbytes repacks 4-bit weights for inference on some CPUs, and the packed product has no backward pass."""
    gradients = []
    for evaluated in (False, True):
        model = nf4(checkpoint)
        if evaluated:
            with torch.inference_mode():
                model(IDS)
        torch.manual_seed(0)
        adapted = adapter_modules.add_adapters(model, RECIPE, Plan(4, ()))
        next_token_loss(adapted, batch(IDS)).backward()
        gradients.append({name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
    first_layer = [g for name, g in gradients[0].items() if ".layers.0." in name and "lora_B" in name]
    assert all(g.abs().max() > 0 for g in first_layer)


def test_adapter_gradient_equals_finite_differences():
    torch.manual_seed(0)
    adapted = adapter_modules.add_adapters(pico("llama", layers=2), RECIPE, WHOLE)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    ids = IDS % 128
    next_token_loss(adapted, batch(ids)).backward()
    gradients = [p.grad.clone() for p in trained]
    norm = torch.cat([g.flatten() for g in gradients]).norm()

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter += step * gradient / norm
            loss = next_token_loss(adapted, batch(ids)).item()
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= step * gradient / norm
        return loss

    slope = (moved(1e-2) - moved(-1e-2)) / 2e-2
    assert slope == pytest.approx(norm.item(), rel=1e-3)


def test_only_adapters_are_trained_and_saved():
    adapted = adapter_modules.add_adapters(pico("llama", layers=2), RECIPE, WHOLE)
    module = Healing(adapted, RECIPE, next_token_loss)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert module.state_dict().keys() == trained


def test_dropout_is_active_during_training():
    adapted = adapter_modules.add_adapters(
        pico("llama", layers=2), dataclasses.replace(RECIPE, dropout=0.5), WHOLE
    ).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    module = Healing(adapted, RECIPE, next_token_loss)
    ids = IDS % 128
    assert module.training_step(batch(ids)).item() == module.training_step(batch(ids)).item()
    module.on_train_start()
    assert module.training_step(batch(ids)).item() != module.training_step(batch(ids)).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_ffn_and_attention_are_recognised_by_structure(family):
    layers = list(decoder_layers.layer_list(pico(family, layers=2)))
    ffn, attention = (
        adapter_modules.adapted_linears(layers, "ffn"),
        adapter_modules.adapted_linears(layers, "attention"),
    )
    assert ffn and attention and not set(ffn) & set(attention)
    assert {*ffn, *attention} == {*adapter_modules.adapted_linears(layers, "all")}
    assert 2 <= len(ffn) <= 3 and all("attn" not in name for name in ffn)


def test_merged_export_equals_the_trained_model(checkpoint, tmp_path):
    """Adapters go into dequantised weights: the logits hardly move; merged into 4-bit weights they would."""
    transformers_logging.disable_progress_bar()
    plan = Plan(4, (1,))
    torch.manual_seed(0)
    adapted = randomise_lora_b(adapter_modules.add_adapters(nf4(checkpoint, plan), RECIPE, plan).eval())
    with torch.no_grad():
        wanted = adapted(IDS).logits
        base = nf4(checkpoint, plan)(IDS).logits
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    with torch.no_grad():
        merged = export.merge_saved_adapters(nf4(checkpoint, plan), tmp_path / "adapter")(IDS).logits
        with pytest.warns(UserWarning, match="rounding errors"):
            into_4bit = copy.deepcopy(adapted).merge_and_unload()(IDS).logits

    def moved(logits: torch.Tensor) -> float:
        return ((logits - wanted).norm() / (wanted - wanted.mean()).norm()).item()

    assert moved(base) > 0.1, "the adapters must matter in this test"
    assert moved(merged) < 0.01
    assert moved(into_4bit) > 3 * moved(merged)


def workspace(config) -> Any:
    return Standalone(dense=Described(config))


@dataclasses.dataclass
class Described:
    """A model of which only the config counts."""

    config: Any


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}


def test_unadapted_weights_are_reported_before_loading(caplog):
    mixture = workspace(pico("mixtral", layers=2, **EXPERTS).config)
    adapters.check_adapters(mixture, RECIPE)
    expected = "heal.modules=all: adapters cover 11% of the layers' weights; not covered: mlp.experts.gate_up_proj, "
    assert [record.getMessage() for record in caplog.records] == [expected + "mlp.experts.down_proj"]
    caplog.clear()
    adapters.check_adapters(mixture, dataclasses.replace(RECIPE, modules="attention"))
    for family in ("llama", "gpt2"):
        adapters.check_adapters(workspace(pico(family, layers=2).config), RECIPE)
    assert not caplog.records


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mixtral", {"modules": "ffn"}, "heal.modules=ffn: no such linear layer in this model; available: self_attn"),
        ("mamba", {}, "heal.modules=all does not work with this model .*out_proj.*; use other heal.modules, heal=par"),
        ("llama", {"rank": 65}, "heal.rank must be at most 64, the width of the layers it adapts, got 65"),
    ],
)
def test_impossible_adapters_are_refused_before_loading(family, changes, said):
    model = pico(family, layers=2, **(EXPERTS if family == "mixtral" else {}))
    with pytest.raises(UserError, match=said) as error:
        adapters.check_adapters(workspace(model.config), dataclasses.replace(RECIPE, **changes))
    assert "\n" not in str(error.value)


def test_multimodal_adapters_sit_on_the_language_model():
    adapted = adapter_modules.add_adapters(picture_model(2), RECIPE, WHOLE)
    homes = {name.partition(".lora_")[0] for name, each in adapted.named_parameters() if each.requires_grad}
    assert len(homes) == 2 * 7 and all(".language_model.layers." in name for name in homes)
    next_token_loss(adapted, batch(IDS % 128)).backward()
    assert all(each.grad is not None for each in adapted.parameters() if each.requires_grad)


def test_multimodal_training_covers_only_the_language_model():
    model = picture_model(2)
    everything = full_finetune.all_parameters(model).keys()
    assert everything == {name for name, _ in model.named_parameters() if "vision" not in name and "modal" not in name}
    last = {name.partition(".layers.1.")[0] for name in full_finetune.last_layer_parameters(model, 1)}
    assert last <= {"model.language_model", "lm_head.weight"}


def test_gpt_2_adapters_merge_exactly():
    """Its linear layers keep their weights transposed."""
    torch.manual_seed(0)
    adapted = randomise_lora_b(adapter_modules.add_adapters(pico("gpt2", layers=2), RECIPE, WHOLE).eval())
    with torch.no_grad():
        wanted = adapted(IDS % 128).logits
        with adapted.disable_adapter():
            assert (adapted(IDS % 128).logits - wanted).abs().max() > 0.1
        with lean_lora.lean_layers(adapted):
            torch.testing.assert_close(adapted(IDS % 128).logits, wanted, rtol=1e-4, atol=1e-4)
        with merging.merged_model(adapted) as merged:
            torch.testing.assert_close(merged(IDS % 128).logits, wanted, rtol=1e-4, atol=1e-4)
        layer = merging.merged_weights(decoder_layers.layer_list(adapted)[0])
        plain = adapted.merge_and_unload()
        for name, each in decoder_layers.layer_list(plain)[0].named_parameters():
            torch.testing.assert_close(layer[name], each, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plain(IDS % 128).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_quantised_gpt_2_export_keeps_transformers_layout(quantise, tmp_path):
    transformers_logging.disable_progress_bar()
    pico("gpt2", layers=3).save_pretrained(tmp_path / "dense")
    checkpoint = Checkpoint(ModelFolder(tmp_path / "dense", HashCache(tmp_path / "hashes.json")), separator=None)
    plan = Plan(3, (1,))

    def load(plan: Plan) -> Any:
        return checkpoint.load(plan, quantise=quantise, dtype="float32", device="cpu")

    torch.manual_seed(0)
    adapted = randomise_lora_b(adapter_modules.add_adapters(load(plan), RECIPE, plan).eval())
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    export.merge_saved_adapters(load(plan), tmp_path / "adapter").save_pretrained(tmp_path / "model")
    with torch.no_grad():
        wanted = adapted(IDS % 128).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(IDS % 128).logits
    assert (found - wanted).norm() < 0.03 * wanted.norm()
