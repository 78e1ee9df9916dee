"""A cut model equals a bypassed one and one built separately, for every family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from depthcut.model.decoder import layers
from pico import FAMILIES, logits, pico, texts, written

DEPTH = 6
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_unwindowed": ("qwen2", {"use_sliding_window": False}),
    "opt_post_norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "gpt2": ("gpt2", {}),
}
CASES = (*FAMILIES, *MORE)
DROPS = [(0,), (5,), (1, 2), (4, 0, 3)]


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    family, changes = MORE.get(request.param, (request.param, {}))
    return pico(family, DEPTH, **changes)


def kept(drop: tuple[int, ...]) -> list[int]:
    return [i for i in range(DEPTH) if i not in drop]


def built(dense: nn.Module, drop: tuple[int, ...]) -> nn.Module:
    """Build a model of the trimmed config, with the kept layers' tensors copied by name."""
    fresh = AutoModelForCausalLM.from_config(layers.trimmed_config(dense.config, drop)).eval()
    stem, tensors = layers.layer_prefix(dense), {}
    for name, tensor in dense.state_dict().items():
        layer, rest = layers.split_tensor_name(name, stem) or (None, name)
        if layer is None:
            tensors[name] = tensor
        elif layer not in drop:
            tensors[f"{stem}.{kept(drop).index(layer)}.{rest}"] = tensor
    fresh.load_state_dict(tensors)
    return fresh


@pytest.mark.parametrize("drop", DROPS)
def test_cut_equals_bypass_equals_separate_model(model: PreTrainedModel, drop: tuple[int, ...]) -> None:
    dense = logits(model)
    with layers.bypass_layers(model, drop):
        bypassed = logits(model)
    separate = logits(built(model, drop))
    cut = logits(layers.cut_layers(model, drop))
    assert torch.equal(cut, bypassed)
    assert torch.equal(cut, separate)
    assert not torch.allclose(cut, dense, atol=0.1)
    assert len(layers.layer_list(model)) == model.config.num_hidden_layers == DEPTH - len(drop)


def test_dropping_nothing_changes_nothing(model: PreTrainedModel) -> None:
    dense, config, names = logits(model), model.config.to_dict(), list(model.state_dict())
    with layers.bypass_layers(model, ()):
        assert torch.equal(logits(model), dense)
    assert layers.trimmed_config(model.config, ()).to_dict() == config
    assert layers.cut_layers(model, ()) is model
    assert torch.equal(logits(model), dense)
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("drop", [(), (0, 3), (1, 2, 5)])
def test_generation_is_the_same_with_and_without_cache(model: PreTrainedModel, drop: tuple[int, ...]) -> None:
    with layers.bypass_layers(model, drop):
        bypassed = written(model, use_cache=True)
    layers.cut_layers(model, drop)
    assert torch.equal(written(model, use_cache=True), written(model, use_cache=False))
    assert torch.equal(written(model, use_cache=True), bypassed)


def test_saved_and_reloaded_model_has_the_same_logits(model: PreTrainedModel, tmp_path: Path) -> None:
    before, drop = model.config.to_dict(), (0, 4)
    expected = logits(layers.cut_layers(model, drop))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), expected)
    assert again.config.num_hidden_layers == 4
    if "layer_types" in before:
        saved = json.loads((tmp_path / "config.json").read_text())["layer_types"]
        assert saved == [before["layer_types"][i] for i in kept(drop)]


def test_bypass_restores_the_model_after_an_error(model: PreTrainedModel) -> None:
    dense, config, stack, names = (
        logits(model),
        model.config.to_dict(),
        layers.layer_list(model),
        list(model.state_dict()),
    )
    with pytest.raises(RuntimeError, match="stop"), layers.bypass_layers(model, (0, 5)):
        assert len(layers.layer_list(model)) == 4
        assert list(model.state_dict()) == names  # bypassed, not gone
        raise RuntimeError("stop")
    assert layers.layer_list(model) is stack
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), dense)
    assert torch.equal(written(model, use_cache=True), written(model, use_cache=False))


def test_nested_bypass_counts_remaining_layers(model: PreTrainedModel) -> None:
    with layers.bypass_layers(model, (0, 3)), layers.bypass_layers(model, (1,)):
        both = logits(model)
    with layers.bypass_layers(model, (0, 2, 3)):
        assert torch.equal(logits(model), both)


def test_hidden_states_after_a_bypass_are_complete(model: PreTrainedModel) -> None:
    """Also if they are asked for the first time inside it."""
    with layers.bypass_layers(model, (2,)):
        assert len(model(texts(), output_hidden_states=True).hidden_states) == DEPTH
    assert len(model(texts(), output_hidden_states=True).hidden_states) == DEPTH + 1


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen2"])
@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_cut_keeps_attention_types_of_kept_layers(family: str, kind: str) -> None:
    """Also if every layer of the other type is dropped."""
    model = pico(family)
    types = model.config.layer_types
    drop = tuple(i for i, each in enumerate(types) if each != kind)
    assert drop
    assert len(drop) < DEPTH
    separate = built(model, drop)
    layers.cut_layers(model, drop)
    assert model.config.layer_types == [kind] * (DEPTH - len(drop))
    assert torch.equal(logits(model), logits(separate))
    assert torch.equal(written(model, use_cache=True), written(model, use_cache=False))
