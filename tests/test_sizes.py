"""Predicted sizes against loaded models with all their tensors, and against a filled KV cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig

from depthcut.cut.plan import Plan
from depthcut.model import HealDefaults
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import layers
from depthcut.model.pico import Pico
from depthcut.model.surgery import sizes as surgery_sizes
from depthcut.model.surgery.costs import nf4_bytes
from depthcut.model.surgery.sizes import ModelSize
from depthcut.study import recorded_sizes
from gaps import model_of, opened
from pico import CACHE, FAMILIES, pico, texts

RECIPE = HealDefaults(rank=1, lr=1e-3, length=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Three Llama layers, 64 wide."""
    model = Pico(layers=3, hidden=64, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=RECIPE)
    return model.open(tmp_path_factory.mktemp("cache"))


def saved(model: nn.Module, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    return Checkpoint(ModelFolder(folder, HashCache(folder / "hashes.json")), separator=None)


def held(part: nn.Module) -> int:
    """Return the bytes of the parameters of ``part`` and of their quantisation state: scales, nested scales, tables."""
    states: list[Any] = [getattr(parameter, "quant_state", None) for parameter in part.parameters()]
    states += [getattr(state, "state2", None) for state in states]
    states += [getattr(module, "state", None) for module in part.modules()]
    states += list(part.parameters())
    beside = [each for state in states if state is not None for each in vars(state).values()]
    tensors = {each.data_ptr(): each for each in [*part.parameters(), *beside] if isinstance(each, torch.Tensor)}
    return sum(each.numel() * each.element_size() for each in tensors.values())


def parts(model: nn.Module, unit: Any) -> list[nn.Module]:
    return [layer.get_submodule(layers.unit_name(layer, unit)) for layer in layers.layer_list(model)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantise", ["none", "nf4", "int8"])
def test_weight_bytes_match_the_loaded_model(checkpoint: Checkpoint, quantise: Any, dtype: Any) -> None:
    loaded = checkpoint.load(None, quantise=quantise, dtype=dtype, device="cpu")
    for unit in ("layer", "attention", "mlp"):
        shape = ModelSize.from_config(checkpoint.config, unit, quantise, dtype)
        assert shape.depth == 3
        assert shape.weight_bytes == tuple(held(part) for part in parts(loaded, unit))
        assert shape.total["weight_bytes"] == held(loaded)


def test_parameters_match_the_loaded_model(checkpoint: Checkpoint) -> None:
    loaded = checkpoint.load(None, quantise="none", dtype="float32", device="cpu")
    for unit in ("layer", "attention", "mlp"):
        shape = ModelSize.from_config(checkpoint.config, unit, "nf4", "bfloat16")
        assert shape.parameters == tuple(sum(p.numel() for p in part.parameters()) for part in parts(loaded, unit))
        assert shape.total["parameters"] == loaded.num_parameters()
    whole, attention = (
        ModelSize.from_config(checkpoint.config, unit, "none", "float32") for unit in ("layer", "attention")
    )
    assert attention.parameters[0] == 4 * 64 * 64  # four square matrices
    assert whole.parameters[0] == 4 * 64 * 64 + 3 * 64 * 256 + 2 * 64


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["phi", "gemma3", "opt", "gpt_neox", "gpt2"])
def test_quantised_sizes_follow_transformers(family: str, quantise: Any, tmp_path: Path) -> None:
    """Tied embeddings, biases, fused and transposed matrices, and linear ones outside the layers (OPT)."""
    changes = {"word_embed_proj_dim": 32} if family == "opt" else {}
    checkpoint = saved(pico(family, layers=2, **changes), tmp_path)
    loaded = checkpoint.load(None, quantise=quantise, dtype="bfloat16", device="cpu")
    shape = ModelSize.from_config(checkpoint.config, "layer", quantise, "bfloat16")
    assert shape.weight_bytes == tuple(held(layer) for layer in layers.layer_list(loaded))
    assert shape.total["weight_bytes"] == held(loaded)
    assert shape.total["parameters"] == pico(family, layers=2, **changes).num_parameters()


def test_nf4_scales_are_counted_in_whole_blocks() -> None:
    """The tables are 273 float32."""
    assert nf4_bytes(64 * 256) == 8192 + 256 + 4 + 1092
    assert nf4_bytes(64 * 256 + 1) == 8193 + 257 + 8 + 1092


@pytest.mark.parametrize("family", [*FAMILIES, "falcon"])
def test_cache_size_matches_a_real_cache(family: str) -> None:
    model = pico(family)
    cache = DynamicCache(config=model.config)
    ids = texts(batch=1, length=3)  # shorter than every window
    with torch.no_grad():
        model(ids, **{CACHE: cache}, use_cache=True)
    filled = [sum(each.numel() * 4 for each in (layer.keys, layer.values)) for layer in cache.layers]
    shape = ModelSize.from_config(model.config, "layer", "none", "float32")
    assert [3 * each for each in shape.cache_bytes] == filled
    assert shape.total["cache_bytes"] * 3 == sum(filled)
    assert ModelSize.from_config(model.config, "attention", "nf4", "float16").cache_bytes == tuple(
        each // 2 for each in shape.cache_bytes
    )


def test_attention_holds_the_whole_cache(checkpoint: Checkpoint) -> None:
    mlp, attention = (
        ModelSize.from_config(checkpoint.config, unit, "none", "float32") for unit in ("mlp", "attention")
    )
    assert mlp.cache_bytes == (0, 0, 0)
    assert attention.cache_bytes == (2 * 64 * 4,) * 3
    assert mlp.total["cache_bytes"] == attention.total["cache_bytes"] == 3 * 2 * 64 * 4


def test_layer_without_attention_caches_nothing() -> None:
    shape = ModelSize.from_config(
        pico("lfm2", layers=3, layer_types=["conv", "full_attention", "conv"]).config, "layer", "none", "float32"
    )
    assert [each > 0 for each in shape.cache_bytes] == [False, True, False]


def test_model_without_separate_sublayers_is_refused() -> None:
    with pytest.raises(ValueError, match="OPTDecoderLayer has no separate mlp"):
        ModelSize.from_config(pico("opt").config, "mlp", "none", "float32")


def test_sizing_a_large_model_takes_no_memory() -> None:
    """Llama-2-70B: 855,654,400 parameters a layer, and 4096 bytes of keys and values a token in 16 bits."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    shape = ModelSize.from_config(config, "layer", "nf4", "bfloat16")
    assert shape.total["parameters"] == 68_976_648_192
    assert set(shape.parameters) == {855_654_400} and set(shape.cache_bytes) == {4096}
    assert 35.5e9 < shape.total["weight_bytes"] < 37e9


def test_model_size_can_be_a_depth_only() -> None:
    assert ModelSize(30).depth == 30 and ModelSize(30).per_unit("parameters") == ()


LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def counted(model: nn.Module, batch: int, length: int) -> dict[str, int]:
    """Return torch's FLOP count of a forward pass by module, without rotary embeddings."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(texts(batch, length), use_cache=False)
    counts = {home: sum(each.values()) for home, each in counter.get_flop_counts().items()}
    rotary = sum(flops for home, flops in counts.items() if home.endswith("rotary_emb"))
    return counts | {"Global": counts["Global"] - rotary}


WIDE: dict[str, Any] = {
    "attn_implementation": "eager",
    "tie_word_embeddings": True,
}  # the matrices are visible to the counter
OWN: dict[str, dict[str, Any]] = {
    "phi3": {"sliding_window": None},
    "gemma3": {"sliding_window": 64},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "experts_implementation": "eager"},
}


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi", "phi3", "opt", "gpt_neox", "gpt2", "gemma3", "mixtral"])
def test_flops_match_torchs_counter(family: str) -> None:
    """Also of tied heads, fused and transposed matrices, and experts; no window is shorter than the text."""
    model = pico(family, layers=3, **WIDE, **OWN.get(family, {}))
    found = ModelSize.from_config(model.config, "layer", "nf4", "bfloat16", context=20)
    counts = counted(model, batch=2, length=20)
    assert found.total["flops_per_token"] * 40 == counts["Global"]
    stem = f"{type(model).__name__}.{layers.layer_prefix(model)}"
    assert [40 * each for each in found.flops_per_token] == [counts[f"{stem}.{i}"] for i in range(3)]
    half = ModelSize.from_config(model.config, "layer", "none", "float32", context=10).total["flops_per_token"]
    assert (found.total["flops_per_token"] - half) * 40 == 3 * 4 * 64 * 10 * 40  # linear in the context: 4 heads of 16


def test_sublayer_flops_sum_to_the_layer(checkpoint: Checkpoint) -> None:
    layer, attention, mlp = (
        ModelSize.from_config(checkpoint.config, unit, "none", "float32", context=100)
        for unit in ("layer", "attention", "mlp")
    )
    assert attention.flops_per_token == (2 * 4 * 64 * 64 + 4 * 64 * 100,) * 3
    assert mlp.flops_per_token == (2 * 3 * 64 * 256,) * 3
    assert [a + m for a, m in zip(attention.flops_per_token, mlp.flops_per_token, strict=True)] == [
        *layer.flops_per_token
    ]
    head = 2 * 64 * checkpoint.config.vocab_size
    assert layer.totals_without((0, 1, 2))["flops_per_token"] == head
    assert (
        attention.totals_without((1,))["flops_per_token"]
        == layer.total["flops_per_token"] - attention.flops_per_token[1]
    )


@pytest.mark.parametrize(("family", "windows"), [("mistral", [6] * 6), ("gemma3", [4, 4, 100, 4, 4, 100])])
def test_attention_flops_stop_at_the_window(family: str, windows: list[int]) -> None:
    shapes = [
        ModelSize.from_config(pico(family).config, "attention", "none", "float32", context=context)
        for context in (100, 1)
    ]
    longer = [long - short for long, short in zip(*(each.flops_per_token for each in shapes), strict=True)]
    assert longer == [4 * 64 * (window - 1) for window in windows]


def test_layer_without_attention_costs_only_its_matrices() -> None:
    model = pico("lfm2", layers=3, layer_types=["conv", "full_attention", "conv"])
    short, long = (
        ModelSize.from_config(model.config, "layer", "none", "float32", context=context).flops_per_token
        for context in (1, 2)
    )
    assert [b - a for a, b in zip(short, long, strict=True)] == [0, 4 * 64, 0]


def test_flops_match_published_ones() -> None:
    """LLM-Pruner (arXiv:2305.11627), table 3: LLaMA-7B takes 424.02 G multiply-adds for 64 tokens; two FLOPs each."""
    whole = ModelSize.from_config(LlamaConfig(**LLAMA_7B), "layer", "none", "float16", context=64).total
    assert whole["parameters"] == 6_738_415_616
    assert whole["flops_per_token"] * 64 == pytest.approx(2 * 424.02e9, rel=3e-4)
    # PaLM's formula (arXiv:2204.02311, appendix B), of which a forward pass is a third.
    palm = 6 * (6_738_415_616 - 32000 * 4096) + 12 * 32 * 4096 * 2048
    at_default = ModelSize.from_config(LlamaConfig(**LLAMA_7B), "layer", "none", "float16").total["flops_per_token"]
    assert at_default == pytest.approx(palm / 3, rel=1e-4)  # it counts the norms


STANDING = (
    "mean",
    "linear replace.map=low_rank replace.rank=3",
    "linear replace.fuse=true",
    "merge",
    "layer replace.steps=1 replace.batch=2",
    "shared replace.rank=4 replace.gain=0.5",
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("words", STANDING)
def test_replacement_is_counted_as_loaded(words: str, tmp_path: Path) -> None:
    """Parameters, bytes and cache of the very model that was measured, and the FLOPs that torch counts in it."""
    torch.manual_seed(0)
    here = opened(
        tmp_path, model_of("llama"), *f"replace={words}".split(), "prune=deepest", "prune.layers=2", "device=cpu"
    )
    here.plan = here.decide(Plan(6, (2, 3)))
    assert recorded_sizes.filled_model_sizes(here, here.plan) is None
    model = here.experiment.replace(here.dense.load(here.plan), here.plan, here)
    recorded_sizes.record_sizes(here)
    sizes = {key.rpartition("/")[2]: n for key, n in here.numbers.items() if key.startswith("pruned/size/")}
    assert sizes["parameters"] == sum(p.numel() for p in model.parameters())
    assert sizes["weight_bytes"] == sum(p.nbytes for p in model.parameters())
    assert sizes["cache_bytes"] == 2 * 2 * 16 * 4 * len(layers.layer_list(model))
    assert {key: n for key, n in here.numbers.items() if key.startswith("healed/size/")} == {
        f"healed/size/{key}": n for key, n in sizes.items()
    }
    for layer in layers.layer_list(model):  # replacements have a separate config
        layer.self_attn.config._attn_implementation = "eager"
    attention = 4 * 64 * len(layers.layer_list(model))
    matrices = sizes["flops_per_token"] - attention * surgery_sizes.CONTEXT_TOKENS
    assert (matrices + attention * 20) * 40 == counted(model, batch=2, length=20)["Global"]


def test_quantised_replacement_is_weighed_as_stored(tmp_path: Path) -> None:
    """The base in 4 bits; what is trained on it in 32."""
    knobs = (
        "replace=shared",
        "replace.rank=4",
        "heal=none",
        "prune=deepest",
        "prune.layers=2",
        "model.quantise=nf4",
        "device=cpu",
    )
    here = opened(tmp_path, model_of("llama"), *knobs)
    here.plan = here.decide(Plan(6, (2, 3)))
    model = here.experiment.replace(here.dense.load(here.plan), here.plan, here)
    recorded_sizes.record_sizes(here)
    assert here.numbers["pruned/size/weight_bytes"] == held(model)
    assert "healed/size/parameters" not in here.numbers
