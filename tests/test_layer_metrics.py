from typing import Any

import numpy as np
import pytest
import torch

import builders
from builders import tokens
from depthcut.metric.magnitude import Magnitude
from depthcut.metric.random import Random
from depthcut.metric.spectral import Spectral
from depthcut.metric.taylor import Taylor
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.pico import Pico
from depthcut.study.standalone import Standalone
from pico import pico


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Any:
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    model = Pico(layers=4, hidden=32, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=heal)
    return Standalone(dense=builders.on_disk(model.open(tmp_path_factory.mktemp("cache"))))


@pytest.mark.parametrize("power", [1, 2])
def test_magnitude_is_the_sum_over_layer_weights(here, power):
    scores = Magnitude(power=power)(here)
    model = here.dense.load()
    wanted = [sum(p.double().abs().pow(power).sum().item() for p in layer.parameters()) for layer in model.model.layers]
    assert scores.layers == pytest.approx(wanted, rel=1e-9)
    assert scores.block(1, 2) == pytest.approx(wanted[1] + wanted[2])
    assert scores.summed


def test_magnitude_reads_only_the_layers_once(here):
    before = here.dense.checkpoint.bytes_read
    Magnitude(power=1)(here)
    layers = [tensor.nbytes for index in range(4) for tensor in here.dense.tensors(index).values()]
    assert here.dense.checkpoint.bytes_read - before == sum(layers)


def test_random_scores_depend_only_on_the_seed(here):
    assert Random(seed=1)(here).layers == Random(seed=1)(here).layers != Random(seed=2)(here).layers
    assert torch.tensor(Random(seed=1)(here).layers).unique().numel() == 4


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_taylor_equals_the_formula_with_plain_autograd(family, batch):
    model, text = pico(family), tokens()
    model.lm_head.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    got = Taylor(batch=batch)(builders.subject(model)).layers
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert not any(parameter.grad is not None for parameter in model.parameters())
    losses = []
    for ids, length in zip(text.ids, text.lengths, strict=True):
        row = torch.from_numpy(ids[None, :length].astype(np.int64))
        log_p = model(row).logits[0, :-1].log_softmax(-1)
        losses.append(-log_p[range(length - 1), row[0, 1:]])
    torch.cat(losses).mean().backward()
    wanted = [
        sum((p * p.grad).abs().sum().item() for p in layer.parameters()) for layer in decoder_layers.layer_list(model)
    ]
    assert got == pytest.approx(wanted, rel=1e-4)


def test_taylor_of_an_identity_layer_is_zero():
    model = pico("llama")
    with torch.no_grad():
        decoder_layers.layer_list(model)[2].self_attn.o_proj.weight.zero_()
        decoder_layers.layer_list(model)[2].mlp.down_proj.weight.zero_()
    scores = Taylor(batch=2)(builders.subject(model)).layers
    assert scores[2] == 0 and min(score for i, score in enumerate(scores) if i != 2) > 0


def test_equal_layers_have_equal_weight_scores(tmp_path):
    model = pico("llama", layers=4)
    decoder_layers.layer_list(model)[2].load_state_dict(decoder_layers.layer_list(model)[1].state_dict())
    model.save_pretrained(tmp_path)
    here = builders.subject(model)
    here.checkpoint = Checkpoint(ModelFolder(tmp_path, HashCache(tmp_path / "hashes.json")), separator=None)
    for metric in (Magnitude(power=1), Magnitude(power=2), Spectral()):
        scores = metric(here).layers
        assert scores[1] == scores[2]
        assert len(set(scores)) == 3
