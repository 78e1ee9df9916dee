"""A healing run: fitting into memory, running out of memory, non-finite losses."""

import csv
import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from adapting import adapted, adapted_nf4, gradient_of, workspace
from comparing import relative_error
from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules, fit, lean_lora, memory_plan, model_memory, objective
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.memory_plan import Layout, MemoryPlan
from depthcut.heal.training.objective import next_token_loss
from depthcut.model.decoder import layers as decoder_layers
from pico import FAMILIES, pico, picture_model
from recipes import AUTO, RECIPE, batch
from running import PICO, succeed, text_files

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has some for every run
GIB = 2**30


def healed(folder, recipe=AUTO, asked=next_token_loss) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = adapter_modules.add_adapters(pico("llama", layers=2), recipe, Plan(2, ()))
    fit.fit_model(model, recipe, workspace(folder), asked)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


GROUPS: dict[str, Any] = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = GROUPS | {"num_local_experts": 4}
ROUTED = GROUPS | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT = ROUTED | {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16}
LATENT |= {"qk_rope_head_dim": 8, "v_head_dim": 16}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
# Heads that read more than hidden states: mixtures of experts, decoders with optional cross-attention.
HEADS: dict[str, dict[str, Any]] = {
    "mixtral": LOCAL | {"output_router_logits": True},
    "qwen2_moe": GROUPS | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    "qwen3_moe": GROUPS | {"num_experts": 4, "head_dim": 16},
    "olmoe": GROUPS | {"num_experts": 4},
    "gpt_oss": LOCAL | {"head_dim": 16},
    "granitemoe": LOCAL,
    "llama4_text": LOCAL | {"head_dim": 16, "intermediate_size_mlp": 64},
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "glm4_moe": ROUTED | {"head_dim": 16},
    "jamba": GROUPS | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "ernie4_5_moe": GROUPS | {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "qwen3_next": GROUPS | LINEAR | {"num_experts": 4, "head_dim": 16, "shared_expert_intermediate_size": 16},
    "doge": {"num_key_value_heads": 2, "is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "gpt2": {},
    "gpt_bigcode": {"n_inner": 128},
    "biogpt": {},
    "xglm": {"ffn_dim": 128, "attention_heads": 4, "num_layers": 4},
    "bert": {"is_decoder": True},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_loss_equals_loss_of_all_logits(family, monkeypatch):
    monkeypatch.setattr(objective, "CHUNK_BYTES", 4 * 128 * 5)  # 5 positions of 38
    check_loss(pico(family, layers=2))


@pytest.mark.parametrize("family", HEADS)
def test_every_head_reads_its_own_decoders_output(family):
    model = pico(family, layers=4, **HEADS[family])
    try:
        model(torch.randint(3, 128, (2, 20)))
    except TypeError as error:  # doge in transformers 5.17
        pytest.skip(f"transformers itself cannot run it: {error}")
    check_loss(model, atol=1e-4)


def test_multimodal_head_is_the_language_models():
    model = picture_model()
    assert {id(each) for each in objective.head_parameters(model)} == {id(model.lm_head.weight)}
    check_loss(model)


def check_loss(model, atol: float = 1e-6) -> None:
    """Assert that the chunked loss and its gradients equal those of all logits."""
    ids = torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(0))
    grads = []
    for loss in (next_token_loss(model, batch(ids)), plain_loss(model, ids)):
        model.zero_grad()
        loss.backward()
        grads.append(
            (loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    assert grads[0][0] == pytest.approx(grads[1][0], rel=1e-6)
    assert grads[0][1].keys() == grads[1][1].keys()
    for name, gradient in grads[0][1].items():
        torch.testing.assert_close(gradient, grads[1][1][name], rtol=1e-4, atol=atol, msg=name)


def plain_loss(model, ids) -> torch.Tensor:
    return F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_gradients_equal_plain_peft():
    model, ids = adapted(torch.float32), torch.randint(3, 128, (4, 20))
    wanted = gradient_of(model, ids)
    with lean_lora.lean_layers(model):
        kinds = {type(module).__name__ for module in model.modules()}
        got = gradient_of(model, ids)
    assert "LeanAdapted" in kinds and wanted.norm() > 0
    assert relative_error(got, wanted) < 1e-6
    assert "LeanAdapted" not in {type(module).__name__ for module in model.modules()}


def test_gradients_on_4_bit_base_equal_plain_peft():
    model, ids = adapted_nf4("cpu", "float32"), torch.randint(3, 128, (4, 20))
    wanted = gradient_of(model, ids)
    with lean_lora.lean_layers(model):
        kinds = {type(module).__name__ for module in model.modules()}
        got = gradient_of(model, ids)
    assert {"Lean4bit", "LeanAdapted4bit"} <= kinds
    assert relative_error(got, wanted) < 1e-6


def test_bfloat16_gradients_equal_peft_under_autocast():
    model, ids = adapted(torch.bfloat16), torch.randint(3, 128, (4, 20))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = gradient_of(model, ids)
    with lean_lora.lean_layers(model):
        got = gradient_of(model, ids)
    assert relative_error(got, wanted) < 1e-3


class Sparse:
    """An objective that runs out of memory at some of its calls."""

    def __init__(self, *fails: int) -> None:
        self.fails, self.calls = fails, 0

    def __call__(self, model, given: MicroBatch) -> torch.Tensor:
        self.calls += 1
        if self.calls in self.fails:
            raise torch.OutOfMemoryError("out of memory")
        return next_token_loss(model, given)


@pytest.mark.parametrize("save_every", [2, 50], ids=["from a checkpoint", "from the beginning"])
def test_out_of_memory_retries_with_the_same_batches(save_every, tmp_path, caplog):
    recipe = dataclasses.replace(AUTO, dropout=0.0, save_every=save_every)
    whole = healed(tmp_path / "whole", recipe)
    caplog.clear()
    with caplog.at_level("INFO", "depthcut"):
        less = healed(tmp_path / "less", recipe, Sparse(1, 6))  # in the first step, and later on
    assert max(tensor_gap(whole, less).values()) < 1e-3  # 6e-5; without restarting step 1: 3e-2
    told = [record.message for record in caplog.records if " per pass, " in record.message]
    assert len(set(told)) == 3 and told[0].startswith("healing: 4 x 8 tokens per pass, 1 pass per step")
    assert [record.levelname for record in caplog.records].count("WARNING") == 2


def test_curve_counts_the_tokens_read(tmp_path):
    words = (*PICO, *text_files(tmp_path), "heal.length=32", "heal.steps=2", "stages=[healed]")
    folder = succeed(f"outputs={tmp_path}/outputs", *words)["folder"]
    rows = list(csv.DictReader((folder / "heal.csv").open()))
    assert [int(row["tokens"]) for row in rows] == [4 * 32, 8 * 32]
    said = (folder / "run.log").read_text()
    assert (
        "data.train: 8 sequences of 32 tokens" in said and "healing: 2 x 32 tokens per pass, 2 passes per step" in said
    )


def tensor_gap(one, other) -> dict[str, float]:
    assert one.keys() == other.keys()
    return {name: (one[name] - other[name]).abs().max().item() for name in one}


def test_explicit_layout_is_not_changed(tmp_path):
    with pytest.raises(ValueError, match=r"ran out of memory on cpu: use a heal\.micro_batch below 4"):
        healed(tmp_path, dataclasses.replace(AUTO, micro_batch=4, recompute="none"), Sparse(2))


def test_non_finite_loss_keeps_last_finite_checkpoint(tmp_path):
    calls = iter(range(1000))

    def falls(model, given):
        return next_token_loss(model, given) * (math.nan if next(calls) >= 3 else 1.0)

    recipe = dataclasses.replace(AUTO, steps=20, micro_batch=4, save_every=1)
    with pytest.raises(ValueError, match=r"diverged: the loss is not finite since step 4; use a lower heal\.lr"):
        healed(tmp_path, recipe, falls)
    kept = torch.load(tmp_path / "heal" / "last.ckpt", weights_only=False)
    assert kept["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


def shape(layers, **sizes) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, num_hidden_layers=layers, **sizes)).to(torch.bfloat16)
        model.is_loaded_in_4bit = True
        ffn = ["gate_proj", "up_proj", "down_proj"]
        return get_peft_model(model, LoraConfig(r=8, target_modules=ffn), low_cpu_mem_usage=True)


HALF_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
HALF_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
QLORA = dataclasses.replace(
    AUTO, batch=8, length=2048, optimiser="paged_adamw_8bit", dropout=0.0, micro_batch="auto", recompute="auto"
)


@pytest.mark.parametrize(
    ("sizes", "layers", "weights", "card", "wanted"),
    [
        (HALF_7B, 16, 2.3, 79, Layout(8, 0, True)),  # memory to spare: nothing is computed twice
        (HALF_70B, 40, 17.5, 79, Layout(2, 0, True)),  # 3,837 tokens/s on an H100; 4 sequences, half recomputed: 3,212
        (HALF_70B, 40, 17.5, 23.5, Layout(2, 40, True)),  # a card of 24 GB
    ],
)
def test_layout_uses_the_available_memory(sizes, layers, weights, card, wanted):
    space = dataclasses.replace(MemoryPlan.of(shape(layers, **sizes), QLORA, "cpu"), free=int((card - weights) * GIB))
    (first, *rest) = memory_plan.choose_layouts(space, QLORA, True)
    assert first == wanted and all(space.fits(each) for each in (first, *rest))
    assert all(space.needs(b) < space.needs(a) for a, b in zip([first, *rest], rest, strict=False))
    if card < 24:
        assert weights + space.needs(Layout(1, 40, True)) / GIB < 22


def test_layers_without_a_gradient_take_no_memory():
    model = adapter_modules.add_adapters(
        pico("llama", layers=6), dataclasses.replace(RECIPE, layers="after_cut"), Plan(8, (3, 4))
    )
    assert model_memory.gradient_layers(model) == list(decoder_layers.layer_list(model))[3:]


@pytest.mark.slow
def test_compiled_layer_computes_the_same():
    """In a process of its own: the compiler imports distutils, after which setuptools warns at each search for pip."""
    call = [sys.executable, "-c", "import test_fit; test_fit.compile_a_layer()"]
    done = subprocess.run(call, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compile_a_layer() -> None:
    model, ids = (
        adapter_modules.add_adapters(pico("llama", layers=3), RECIPE, Plan(3, ())),
        torch.randint(3, 128, (2, 16)),
    )
    wanted = gradient_of(model, ids)
    with fit.applied_layout(model, Layout(2, 1, True)):
        got = gradient_of(model, ids)
    assert relative_error(got, wanted) < 1e-5
