"""A layer-by-layer forward pass equals the model bit for bit, for every family."""

import pytest
import torch
from torch import nn

from depthcut.model.decoder import layers, layerwise
from depthcut.runtime.errors import UserError
from pico import FAMILIES, logits, pico, texts

MASK = torch.ones(2, 20, dtype=torch.long)
MASK[1, 12:] = 0


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_every_boundary_and_the_logits(family, mask):
    model = pico(family)
    inputs = {"input_ids": texts(), "attention_mask": mask, "use_cache": False}
    wanted = model(**inputs, output_hidden_states=True)
    way = layerwise.start_forward(model, inputs)
    h = way.h_BTD
    for index in range(6):
        assert torch.equal(h, wanted.hidden_states[index])
        h = way.step(index, h)
    assert torch.equal(way.logits(h), wanted.logits)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_skipping_layers_equals_the_model_without_them(family):
    model = pico(family)
    way = layerwise.start_forward(model, {"input_ids": texts(), "attention_mask": None, "use_cache": False})
    h = way.h_BTD
    for index in (0, 2, 3):
        h = way.step(index, h)
    with layers.bypass_layers(model, (1, 4, 5)):
        assert torch.equal(way.logits(h), logits(model))


class Tupled(nn.Module):
    """A layer that returns a tuple with the hidden states first, as older models do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, **more):
        return (self.layer(hidden_states, **more), None)


class Untupled(nn.ModuleList):
    """Make the loop of a newer model take the first of each tuple, as older models do."""

    def __iter__(self):
        return iter([_First(layer) for layer in super().__iter__()])


class _First:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, *args, **kwargs):
        return self.layer(*args, **kwargs)[0]


@torch.no_grad()
def test_layers_that_return_tuples(monkeypatch):
    model = pico("llama")
    wanted = logits(model)
    stack = Untupled(Tupled(layer) for layer in layers.layer_list(model))
    model.model.layers = stack
    monkeypatch.setattr(layerwise, "stub_layers", _through(layerwise.stub_layers))
    way = layerwise.start_forward(model, {"input_ids": texts(), "attention_mask": None, "use_cache": False})
    h = way.h_BTD
    for index in range(6):
        h = way.step(index, h)
    assert way.returns_tuple
    assert torch.equal(way.logits(h), wanted)


def _through(stubbed):
    return lambda stack, forward: stubbed([each.layer for each in stack], forward)


@torch.no_grad()
def test_layers_whose_tuple_the_model_unpacks():
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
    model = pico("bamba", num_key_value_heads=2, attn_layer_indices=[1, 3], **mamba)
    way = layerwise.start_forward(model, {"input_ids": texts(4), "attention_mask": None, "use_cache": False})
    h = way.h_BTD
    for index in range(6):
        h = way.step(index, h)
    assert torch.equal(way.logits(h), model(texts(4), use_cache=False).logits)


def test_layers_that_pass_on_state_are_refused():
    model = pico("rwkv", attention_hidden_size=64, context_length=64)
    with pytest.raises(UserError, match=r"RwkvForCausalLM: its layers pass on more .* use prune=deepest"):
        layerwise.start_forward(model, {"input_ids": texts(4), "use_cache": False})


def test_model_is_restored_after_an_error():
    model = pico("llama")
    with (
        pytest.raises(RuntimeError, match="stop"),
        layerwise.stub_layers(layers.layer_list(model), lambda _: lambda *_: None),
    ):
        raise RuntimeError("stop")
    assert not any("forward" in vars(layer) for layer in layers.layer_list(model))


def test_non_model_is_reported_as_such():
    with pytest.raises(UserError, match="Linear is not a transformers model"):
        layerwise.start_forward(nn.Linear(2, 2), {})
