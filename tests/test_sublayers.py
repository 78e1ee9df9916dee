"""Layers without attention or MLP: bypassed, run layer by layer, loaded, and saved and reloaded models are equal."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import builders
import depthcut
from builders import subject, tokens
from depthcut.cut.plan import Plan
from depthcut.metric.block_influence import BlockInfluence
from depthcut.metric.kl import Kl
from depthcut.metric.magnitude import Magnitude
from depthcut.metric.passes.hidden_states import HiddenStates
from depthcut.metric.taylor import Taylor
from depthcut.model.checkpoint import exported
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import layers, layerwise, sublayers
from depthcut.model.pico import Pico
from depthcut.study.standalone import Standalone
from pico import CACHE, FAMILIES, logits, pico, texts, written

UNITS = [(family, unit) for family in FAMILIES for unit in ("attention", "mlp") if (family, unit) != ("opt", "mlp")]


def zeroed(model, unit: str, index: int) -> None:
    """Make the same cut with weights: zero the sublayer's output projection."""
    part = layers.layer_list(model)[index].get_submodule(layers.unit_name(layers.layer_list(model)[index], unit))
    last = [module for module in part.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()


@pytest.mark.parametrize(("family", "unit"), UNITS)
def test_bypass_equals_layerwise_skip_equals_zeroed_weights(family, unit):
    model, drop = pico(family), (0, 3)
    with sublayers.bypass_units(model, drop, unit):
        bypassed = logits(model)
    with torch.no_grad():
        way = layerwise.start_forward(model, {"input_ids": texts(), "attention_mask": None, "use_cache": False})
        h = way.h_BTD
        for index in range(6):
            h = way.step(index, h, unit if index in drop else None)
        assert torch.equal(way.logits(h), bypassed)
    whole = logits(model)
    for index in drop:
        zeroed(model, unit, index)
    assert torch.equal(logits(model), bypassed)
    assert not torch.equal(whole, bypassed)


@pytest.mark.parametrize(("family", "unit"), UNITS)
def test_generation_is_the_same_with_and_without_cache(family, unit):
    model = pico(family)
    with sublayers.bypass_units(model, (0, 3), unit):
        assert torch.equal(written(model, use_cache=True), written(model, use_cache=False))


def test_cache_without_attention_only_counts_positions():
    model = pico("llama")
    with sublayers.bypass_units(model, (0, 3), "attention"), torch.no_grad():
        cache = model(texts(), use_cache=True)[CACHE]
    sizes = [(layer.keys.numel() + layer.values.numel()) / texts().numel() for layer in cache.layers]
    assert sizes == [1, 64, 64, 1, 64, 64]  # two KV heads of 16, keys and values
    assert cache.get_seq_length() == texts().shape[1]


def test_opt_has_no_mlp_module():
    with pytest.raises(ValueError, match=r"OPTDecoderLayer has no separate mlp .*; use prune.unit=layer"):
        sublayers.remove_sublayers(pico("opt"), Plan(6, (1,), "mlp"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    heal = {"rank": 4, "lr": 1e-2, "length": 8}
    model = Pico(layers=4, hidden=64, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=heal)
    return model.open(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("unit", ["attention", "mlp"])
@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_loaded_sublayers_equal_bypass_and_skip_reads(checkpoint, unit, quantise):
    plan = Plan(4, (1, 2), unit)
    whole = checkpoint.load(None, quantise=quantise, dtype="float32", device="cpu")
    before = checkpoint.bytes_read
    model = checkpoint.load(plan, quantise=quantise, dtype="float32", device="cpu")
    gone = sum(tensor.nbytes for index in plan.drop for tensor in checkpoint.tensors(index, unit).values())
    every = [checkpoint.tensors(index) for index in (None, 0, 1, 2, 3)]
    assert checkpoint.bytes_read - before == sum(t.nbytes for part in every for t in part.values()) - gone
    ids = torch.randint(3, 100, (2, 9))
    with torch.no_grad(), sublayers.bypass_units(whole, plan.drop, unit):
        assert torch.equal(model(ids).logits, whole(ids).logits)


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_saved_and_loaded_again(checkpoint, unit, tmp_path):
    plan = Plan(4, (0, 3), unit)
    model = checkpoint.load(plan, quantise="none", dtype="float32", device="cpu")
    exported.write_exported(model, plan, tmp_path)
    again = depthcut.load(tmp_path, dtype="float32")
    ids = torch.randint(3, 100, (2, 9))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="depthcut"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was already cut by depthcut; cut the model"):
        Checkpoint(ModelFolder(tmp_path, HashCache(tmp_path / "h.json")), separator=None)


def test_plain_model_loads_with_depthcut_and_transformers(checkpoint, tmp_path):
    plan = Plan(4, (1, 2))
    exported.write_exported(checkpoint.load(plan, quantise="none", dtype="float32", device="cpu"), plan, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
    ids = torch.randint(3, 100, (2, 9))
    with torch.no_grad():
        ours, plain = depthcut.load(tmp_path, dtype="float32"), AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(ours(ids).logits, plain(ids).logits)


def test_loading_a_missing_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a model: it has no config"):
        depthcut.load(tmp_path / "none")


@pytest.mark.parametrize("unit", ["attention", "mlp"])
@pytest.mark.parametrize("removed", [(), (2,)])
def test_removal_of_sublayers_equals_naive_scores(unit, removed):
    model, text = pico("gemma2"), tokens()
    got = Kl(batch=3)(subject(model, text), removed, unit).layers
    wanted = []
    for index in (index for index in range(6) if index not in removed):
        found = []
        for row, length in zip(text.ids, text.lengths, strict=True):
            ids = torch.from_numpy(row[None, :length].astype(np.int64))
            with torch.no_grad():
                dense = model(ids).logits[0, :-1].double().log_softmax(-1)
                with sublayers.bypass_units(model, (*removed, index), unit):
                    without = model(ids).logits[0, :-1].double().log_softmax(-1)
            found += (dense.exp() * (dense - without)).sum(-1).tolist()
        wanted.append(np.mean(found))
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("unit", ["attention", "mlp"])
@pytest.mark.parametrize("removed", [(), (2,)])
def test_hidden_states_on_both_sides_of_sublayers(unit, removed):
    """Seen by hooks on the norms of a Llama layer, which are at the boundaries of its sublayers."""
    model, text = pico("llama"), tokens((12,))
    seen: dict[tuple[int, str], torch.Tensor] = {}

    def hook(key):
        return lambda _, args: seen.update({key: args[0][0].double()})

    stack = layers.layer_list(model)
    handles = [
        norm.register_forward_pre_hook(hook((index, name)))
        for index, layer in enumerate(stack)
        for name, norm in (("attention", layer.input_layernorm), ("mlp", layer.post_attention_layernorm))
    ]
    handles.append(model.model.norm.register_forward_pre_hook(hook((6, "attention"))))
    with torch.no_grad(), sublayers.bypass_units(model, removed, unit):
        model(torch.from_numpy(text.ids.astype(np.int64)))
    for handle in handles:
        handle.remove()
    wanted = []
    for index in (index for index in range(6) if index not in removed):
        sides = (
            [(index, "attention"), (index, "mlp")]
            if unit == "attention"
            else [(index, "mlp"), (index + 1, "attention")]
        )
        wanted += [seen[side] for side in sides]
    (got,) = HiddenStates(
        subject=subject(model, text), name="x", batch=1, token="all", unit=unit, removed=removed
    ).samples()
    torch.testing.assert_close(got, torch.stack(wanted, dim=1))


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_zero_sublayer_scores_zero_with_every_metric(unit):
    model = pico("llama")
    zeroed(model, unit, 2)
    for metric in (BlockInfluence(batch=2, until=None), Kl(batch=2), Taylor(batch=2)):
        scores = metric(subject(model), unit=unit).layers
        assert abs(scores[2]) < 1e-6 < 1e-4 < min(score for index, score in enumerate(scores) if index != 2), metric


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_magnitude_of_one_sublayer(unit, checkpoint):
    here = Standalone(dense=builders.on_disk(checkpoint))
    model = checkpoint.load(None, quantise="none", dtype="float32", device="cpu")
    parts = [layer.get_submodule(layers.unit_name(layer, unit)) for layer in layers.layer_list(model)]
    wanted = [sum(p.double().abs().sum().item() for p in part.parameters()) for part in parts]
    assert Magnitude(power=1)(here, unit=unit).layers == pytest.approx(wanted, rel=1e-9)
