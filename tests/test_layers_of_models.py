"""Models beyond the plain families: multimodal, wrapped by peft, in 4 bits, on the meta device, unsupported."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)

from depthcut.model.decoder import layers
from pico import SIZES, logits, pico, picture_model, written

DEPTH = 6


def test_cut_trims_per_layer_config_fields_only(tmp_path: Path) -> None:
    qwen2 = layers.trimmed_config(pico("qwen2").config, (0, 1, 5))
    assert (qwen2.max_window_layers, qwen2.layer_types) == (1, ["full_attention"] + ["sliding_attention"] * 2)
    smol = layers.trimmed_config(pico("smollm3", no_rope_layers=[1, 1, 0, 1, 0, 1]).config, (0, 4))
    assert smol.no_rope_layers == [1, 0, 1, 1]
    smol.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).no_rope_layers == [1, 0, 1, 1]
    llama = LlamaConfig(**SIZES | {"num_hidden_layers": 3, "eos_token_id": [2, 3, 4]})
    assert layers.trimmed_config(llama, (1,)).eos_token_id == [2, 3, 4]
    assert llama.num_hidden_layers == 3


def test_multimodal_cut_spares_the_vision_encoder(tmp_path: Path) -> None:
    model = picture_model(DEPTH)
    assert layers.layer_prefix(model) == "model.language_model.layers"
    with layers.bypass_layers(model, (0, 2)):
        expected = logits(model)
    layers.cut_layers(model, (0, 2)).save_pretrained(tmp_path)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)
    assert (model.config.text_config.num_hidden_layers, model.config.vision_config.num_hidden_layers) == (4, DEPTH)


def test_peft_model_can_be_bypassed_and_cut() -> None:
    model = pico("llama")
    with layers.bypass_layers(model, (1, 3)):
        expected = logits(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    assert layers.layer_prefix(wrapped) == "base_model.model.model.layers"
    assert layers.decoder_stack(wrapped) is model.model
    with layers.bypass_layers(wrapped, (1, 3)):
        assert torch.equal(logits(wrapped), expected)
    assert torch.equal(logits(layers.cut_layers(wrapped, (1, 3))), expected)


def test_4_bit_model_can_be_cut(tmp_path: Path) -> None:
    pico("llama").save_pretrained(tmp_path / "dense")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)

    def load(name: str, **more: Any) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(tmp_path / name, device_map={"": "cpu"}, **more)

    # Saved before it runs: bitsandbytes 0.50 repacks its weights in a CPU forward, and saving corrupts them afterwards.
    layers.cut_layers(load("dense", quantization_config=nf4), (0, 4)).save_pretrained(tmp_path / "cut")  # pyright: ignore
    model = load("dense", quantization_config=nf4)
    with layers.bypass_layers(model, (0, 4)):
        bypassed = logits(model)
    assert torch.equal(logits(layers.cut_layers(model, (0, 4))), bypassed)
    assert torch.equal(logits(load("cut")), bypassed)
    assert torch.equal(written(model, use_cache=True), written(model, use_cache=False))


def test_7b_skeleton_takes_no_time_or_memory() -> None:
    before, start = psutil.Process().memory_info().rss, time.process_time()
    model = layers.meta_model(LlamaConfig())
    assert time.process_time() - start < 3
    assert psutil.Process().memory_info().rss - before < 100e6
    assert sum(parameter.numel() for parameter in model.parameters()) > 6.7e9
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}


def test_list_inside_a_layer_is_not_the_stack() -> None:
    model = pico("llama")
    layers.layer_list(model)[2].experts = nn.ModuleList(nn.Identity() for _ in range(DEPTH))
    assert layers.layer_prefix(model) == "model.layers"


def test_tensor_name_is_split_at_the_layer_list() -> None:
    assert layers.split_tensor_name("model.layers.17.mlp.up_proj.weight", "model.layers") == (17, "mlp.up_proj.weight")
    assert layers.split_tensor_name("model.norm.weight", "model.layers") is None
    assert layers.split_tensor_name("vision.model.layers.3.bias", "model.layers") is None
    assert layers.split_tensor_name("modelXlayers.3.bias", "model.layers") is None


class Qwen1(PreTrainedModel):
    """A model with custom code, as Qwen-1."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.h = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


QWEN1 = {"model_type": "qwen", "num_hidden_layers": 3, "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"}}
SHARED = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3}
T5 = {"vocab_size": 128, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 4, "num_layers": 3}


def config_of(kind: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(kind, **({"num_hidden_layers": 6} | changes))


def listless() -> nn.Module:
    model = pico("llama", 3)
    model.model.layers = nn.Sequential(*layers.layer_list(model))
    return model


def twofold() -> nn.Module:
    model = pico("llama", 3)
    model.model.norms = nn.ModuleList(nn.Identity() for _ in range(3))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.layer_list(T5ForConditionalGeneration(T5Config(**T5))), "t5 is an encoder-decoder"),
        (lambda: layers.meta_model(T5Config(**T5)), "t5 is an encoder-decoder"),
        (lambda: layers.meta_model(PreTrainedConfig.from_dict(QWEN1)), "qwen is not a .*Qwen-1"),
        (lambda: layers.layer_list(Qwen1(PreTrainedConfig.from_dict(QWEN1))), "qwen is not a .*Qwen-1"),
        (lambda: layers.trimmed_config(ViTConfig(), (1,)), "vit is not a language model"),
        (
            lambda: layers.trimmed_config(config_of("gemma4_text", **SHARED), (1,)),
            r"gemma4_text \(num_kv_shared_layers=2\)",
        ),
        (
            lambda: layers.trimmed_config(config_of("gemma3n_text", num_kv_shared_layers=0), (1,)),
            r"gemma3n_text \(altup_num_inputs=4\)",
        ),
        (lambda: layers.layer_list(nn.Linear(2, 2)), "Linear is not a transformers model"),
        (lambda: layers.layer_list(listless()), "no list of 3 layers"),
        (lambda: layers.layer_list(twofold()), r"several lists of 3 layers \(model.layers, model.norms\)"),
    ],
)
def test_unsupported_model_error_lists_the_supported_ones(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"{words}.*; depthcut supports Llama, Mistral") as error:
        make()
    assert "\n" not in str(error.value)


def bart() -> nn.Module:
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 128}
    return BartForCausalLM(BartConfig(**sizes, encoder_layers=3, decoder_layers=3))


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 2}
GROUPS: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "num_key_value_heads": 2}
ALTERNATING = ["sliding_attention", "full_attention"] * 3
GEMMA4 = GROUPS | {
    "layer_types": ALTERNATING,
    "sliding_window": 8,
    "global_head_dim": 32,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 128,
}
# Configs that list layers by number, by pattern or by mapping, or contain an infinity.
LISTED: dict[str, tuple[str, dict[str, Any]]] = {
    "numbers": ("qwen3_moe", GROUPS | MOE | {"decoder_sparse_step": 1, "mlp_only_layers": [0, 4]}),
    "all numbers": ("llama4_text", GROUPS | {"num_local_experts": 2, "moe_layers": [*range(6)]}),
    "mapping": ("gemma4_text", GEMMA4),
    "pattern": ("recurrent_gemma", {"num_key_value_heads": 1, "head_dim": 16, "lru_width": 64}),
    "infinity": ("granitemoehybrid", MAMBA | {"layer_types": ["mamba", "attention"] * 3, "num_local_experts": 0}),
}


@pytest.mark.parametrize("drop", [(1, 2), (0, 4)])
@pytest.mark.parametrize("case", LISTED)
def test_per_layer_lists_follow_a_cut(case: str, drop: tuple[int, ...], tmp_path: Path) -> None:
    kind, changes = LISTED[case]
    model = pico(kind, **changes)
    dense = logits(model)
    with layers.bypass_layers(model, drop):
        expected = logits(model)
    assert torch.equal(logits(model), dense)
    layers.cut_layers(model, drop).save_pretrained(tmp_path)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)


@pytest.mark.parametrize(
    ("make", "drop", "words"),
    [
        (lambda: pico("qwen3_moe", **MOE), (0,), r"drops layer 0 of 0-5, keeps 5 \(mlp"),
        (bart, (1,), "drops layer 1 of 0-2, keeps 2 .*no list of 2 layers"),
        (lambda: pico("llama", 3), (3,), "drops layer 3, but this model has layers 0-2"),
        (lambda: pico("llama", 3), (0, 1, 2), "keeps 0 of 3 layers"),
    ],
)
def test_inexpressible_cut_is_refused_before_any_change(make: Any, drop: Any, words: str) -> None:
    """No field of the config can describe what would be left."""
    model = make()
    stack, config = list(layers.layer_list(model)), model.config.to_dict()
    with pytest.raises(ValueError, match=words) as error:
        layers.cut_layers(model, drop)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=words), layers.bypass_layers(model, drop):
        pass
    assert list(layers.layer_list(model)) == stack
    assert model.config.to_dict() == config
