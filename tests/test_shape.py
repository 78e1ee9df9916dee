"""Against models that are really loaded, with every tensor that they hold, and a KV cache that is really filled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig

from depthcut import depth
from depthcut.checkpoint import Checkpoint
from depthcut.files import Folder, Hashes
from depthcut.model import HealDefaults
from depthcut.model.pico import Pico
from depthcut.shape import Shape, nf4
from pico import FAMILIES, pico, texts

RECIPE = HealDefaults(rank=1, lr=1e-3, length=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Three Llama layers, 64 wide."""
    model = Pico(layers=3, hidden=64, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=RECIPE)
    return model.open(tmp_path_factory.mktemp("cache"))


def saved(model: nn.Module, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    return Checkpoint(Folder(folder, Hashes(folder / "hashes.json")), separator=None)


def held(part: nn.Module) -> int:
    """Bytes of the parameters of ``part`` and of every tensor beside them: scales, scales of scales, tables."""
    states: list[Any] = [getattr(parameter, "quant_state", None) for parameter in part.parameters()]
    states += [getattr(state, "state2", None) for state in states]
    states += [getattr(module, "state", None) for module in part.modules()]
    states += list(part.parameters())
    beside = [each for state in states if state is not None for each in vars(state).values()]
    tensors = {each.data_ptr(): each for each in [*part.parameters(), *beside] if isinstance(each, torch.Tensor)}
    return sum(each.numel() * each.element_size() for each in tensors.values())


def parts(model: nn.Module, unit: Any) -> list[nn.Module]:
    return [layer.get_submodule(depth.unit_name(layer, unit)) for layer in depth.layers(model)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantise", ["none", "nf4", "int8"])
def test_bytes_are_those_of_the_loaded_model(checkpoint: Checkpoint, quantise: Any, dtype: Any) -> None:
    loaded = checkpoint.load(None, quantise=quantise, dtype=dtype, device="cpu")
    for unit in ("layer", "attention", "mlp"):
        shape = Shape.of(checkpoint.config, unit, quantise, dtype)
        assert shape.depth == 3
        assert shape.weight_bytes == tuple(held(part) for part in parts(loaded, unit))
        assert shape.whole["weight_bytes"] == held(loaded)


def test_parameters_are_those_of_the_loaded_model(checkpoint: Checkpoint) -> None:
    loaded = checkpoint.load(None, quantise="none", dtype="float32", device="cpu")
    for unit in ("layer", "attention", "mlp"):
        shape = Shape.of(checkpoint.config, unit, "nf4", "bfloat16")
        assert shape.parameters == tuple(sum(p.numel() for p in part.parameters()) for part in parts(loaded, unit))
        assert shape.whole["parameters"] == loaded.num_parameters()
    whole, halves = (Shape.of(checkpoint.config, unit, "none", "float32") for unit in ("layer", "attention"))
    assert halves.parameters[0] == 4 * 64 * 64  # four square matrices
    assert whole.parameters[0] == 4 * 64 * 64 + 3 * 64 * 256 + 2 * 64


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["phi", "gemma3", "opt", "gpt_neox", "gpt2"])
def test_only_what_transformers_quantises_is_weighed_so(family: str, quantise: Any, tmp_path: Path) -> None:
    """Tied embeddings, biases, fused and transposed matrices, and linear ones outside the layers (OPT)."""
    changes = {"word_embed_proj_dim": 32} if family == "opt" else {}
    checkpoint = saved(pico(family, layers=2, **changes), tmp_path)
    loaded = checkpoint.load(None, quantise=quantise, dtype="bfloat16", device="cpu")
    shape = Shape.of(checkpoint.config, "layer", quantise, "bfloat16")
    assert shape.weight_bytes == tuple(held(layer) for layer in depth.layers(loaded))
    assert shape.whole["weight_bytes"] == held(loaded)
    assert shape.whole["parameters"] == pico(family, layers=2, **changes).num_parameters()


def test_nf4_scales_are_counted_in_whole_blocks() -> None:
    """The tables are 273 float32."""
    assert nf4(64 * 256) == 8192 + 256 + 4 + 1092
    assert nf4(64 * 256 + 1) == 8193 + 257 + 8 + 1092


@pytest.mark.parametrize("family", [*FAMILIES, "falcon"])
def test_the_cache_is_what_a_real_one_holds(family: str) -> None:
    model = pico(family)
    cache = DynamicCache(config=model.config)
    ids = texts(batch=1, length=3)  # shorter than every window
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
    filled = [sum(each.numel() * 4 for each in (layer.keys, layer.values)) for layer in cache.layers]
    shape = Shape.of(model.config, "layer", "none", "float32")
    assert [3 * each for each in shape.cache_bytes] == filled
    assert shape.whole["cache_bytes"] * 3 == sum(filled)
    assert Shape.of(model.config, "attention", "nf4", "float16").cache_bytes == tuple(
        each // 2 for each in shape.cache_bytes
    )


def test_an_mlp_holds_no_cache_and_an_attention_all_of_it(checkpoint: Checkpoint) -> None:
    mlp, attention = (Shape.of(checkpoint.config, unit, "none", "float32") for unit in ("mlp", "attention"))
    assert mlp.cache_bytes == (0, 0, 0)
    assert attention.cache_bytes == (2 * 64 * 4,) * 3
    assert mlp.whole["cache_bytes"] == attention.whole["cache_bytes"] == 3 * 2 * 64 * 4


def test_a_layer_without_an_attention_caches_nothing() -> None:
    shape = Shape.of(
        pico("lfm2", layers=3, layer_types=["conv", "full_attention", "conv"]).config, "layer", "none", "float32"
    )
    assert [each > 0 for each in shape.cache_bytes] == [False, True, False]


def test_a_model_without_such_halves_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="OPTDecoderLayer keeps no mlp of its own"):
        Shape.of(pico("opt").config, "mlp", "none", "float32")


def test_a_large_model_takes_no_memory() -> None:
    """Llama-2-70B: 855,654,400 parameters a layer, and 4096 bytes of keys and values a token in 16 bits."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    shape = Shape.of(config, "layer", "nf4", "bfloat16")
    assert shape.whole["parameters"] == 68_976_648_192
    assert set(shape.parameters) == {855_654_400} and set(shape.cache_bytes) == {4096}
    assert 35.5e9 < shape.whole["weight_bytes"] < 37e9


def test_a_shape_can_be_a_depth_alone() -> None:
    assert Shape(30).depth == 30 and Shape(30).of_units("parameters") == ()
