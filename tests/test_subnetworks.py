import math

import numpy as np
import pytest
import torch

from builders import sized, subject, tokens
from depthcut.data.text.tokens import Tokens
from depthcut.metric.kl import Kl
from depthcut.metric.perplexity import Perplexity
from depthcut.model.decoder import layers, measurement, shared_prefix
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune.greedy import Greedy
from pico import FAMILIES, pico


def log_p(model, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(ids[None].astype(np.int64))).logits[0, :-1].double().log_softmax(-1)


def naive(model, text: Tokens) -> tuple[list[float], list[float]]:
    """Bypass each layer in turn, one sequence at a time; return perplexities and divergences."""
    perplexities, divergences = [], []
    for layer in range(len(layers.layer_list(model))):
        losses, diverged = [], []
        for row, length in zip(text.ids, text.lengths, strict=True):
            ids = row[:length]
            dense = log_p(model, ids)
            with layers.bypass_layers(model, [layer]):
                without = log_p(model, ids)
            losses += (-without[range(length - 1), ids[1:]]).tolist()
            diverged += (dense.exp() * (dense - without)).sum(-1).tolist()
        perplexities.append(math.exp(np.mean(losses)))
        divergences.append(np.mean(diverged))
    return perplexities, divergences


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_equals_each_candidate_alone(family):
    model, text = pico(family), tokens()
    perplexities, divergences = naive(model, text)
    for batch in (1, 3):
        assert Perplexity(batch=batch)(subject(model, text)).layers == pytest.approx(perplexities, rel=1e-5)
        assert Kl(batch=batch)(subject(model, text)).layers == pytest.approx(divergences, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("metric", [Perplexity(batch=3), Kl(batch=3)])
def test_remaining_layers_are_rescored(metric):
    model, text = pico("gemma2", layers=5), tokens()
    scores = metric(subject(model, text), (1, 3)).layers
    assert len(scores) == 3
    for place, layer in enumerate((0, 2, 4)):
        if isinstance(metric, Kl):
            assert scores[place] == pytest.approx(divergence_without(model, text, [1, 3], layer), rel=1e-4)
        else:
            losses = []
            for row, length in zip(text.ids, text.lengths, strict=True):
                with layers.bypass_layers(model, [1, 3, layer]):
                    losses += (-log_p(model, row[:length])[range(length - 1), row[1:length]]).tolist()
            assert scores[place] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_identity_layer_costs_nothing():
    model, text = pico("llama"), tokens()
    with torch.no_grad():
        layers.layer_list(model)[2].self_attn.o_proj.weight.zero_()
        layers.layer_list(model)[2].mlp.down_proj.weight.zero_()
    divergence = Kl(batch=2)(subject(model, text)).layers
    assert divergence[2] < 1e-6 and min(d for i, d in enumerate(divergence) if i != 2) > 1e-3


def test_shared_prefixes_halve_the_layer_passes():
    model, text = pico("llama", layers=12), tokens((12, 12))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stack = list(layers.layer_list(model))
    passes = 0

    def counted(forward):
        def call(*args, **kwargs):
            nonlocal passes
            passes += 1
            return forward(*args, **kwargs)

        return call

    for layer in stack:
        layer.self_attn.forward = counted(layer.self_attn.forward)
    Kl(batch=2)(subject(model, text))
    naive_passes = 12 * 11
    assert passes == 12 + 12 * 11 // 2 <= 0.6 * naive_passes  # 0.55 from 20 layers on
    assert list(layers.layer_list(model)) == stack and all("forward" not in vars(layer) for layer in stack)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_stderr_is_that_of_a_ratio_estimator():
    """With sequences of equal length it is the plain standard error of their means."""
    model, text = pico("llama"), tokens((12, 12, 12, 12))
    metric = Perplexity(batch=2)
    here = subject(model, text)
    sums, counts = shared_prefix.measure_subnetworks(here.dense, [(1,)], "layer", metric.reading(here, None))
    _, stderr = measurement.mean_and_stderr(sums, counts, torch.ones(4))
    rows = []
    for ids in text.ids:
        with layers.bypass_layers(model, [1]):
            found = log_p(model, ids)
        rows.append(-found[range(11), ids[1:]].mean().item())
    assert stderr[0].item() == pytest.approx(np.std(rows, ddof=1) / 2, rel=1e-4)


def test_greedy_equals_bypassing_layers_in_turn():
    model, text = pico("llama"), tokens()

    def score(removed=()):
        return Kl(batch=3)(subject(model, text), removed)

    plan = sized(Greedy, frac=0.5)(score, ModelSize(6))
    removed: list[int] = []
    for _ in range(3):
        left = [layer for layer in range(5) if layer not in removed]
        removed.append(min(left, key=lambda layer: divergence_without(model, text, removed, layer)))
    assert plan.notes["order"] == removed


def divergence_without(model, text: Tokens, removed: list[int], layer: int) -> float:
    """Return the divergence from the dense model, not from the remaining one."""
    found = []
    for row, length in zip(text.ids, text.lengths, strict=True):
        ids = row[:length]
        dense = log_p(model, ids)
        with layers.bypass_layers(model, [*removed, layer]):
            found += (dense.exp() * (dense - log_p(model, ids))).sum(-1).tolist()
    return float(np.mean(found))


def test_known_prefixes_are_not_recomputed():
    """Greedy's second round after layer 8 of 12 went: the candidates before it continue from stored hidden states."""
    model, text, fresh = pico("llama", layers=12), tokens((12, 12)), []
    for held in (subject(model, text), subject(model, text)):
        Kl(batch=2)(held)
        first = held.dense.prefixes.layer_passes
        assert first == 12 + 12 * 11 // 2
        if fresh:
            held.dense.prefixes.max_bytes, held.dense.prefixes.streams = 0, {}
        scores = Kl(batch=2)(held, (8,))
        fresh.append((held.dense.prefixes.layer_passes - first, scores))
    (kept, scores), (again, wanted) = fresh
    assert scores.layers == wanted.layers
    # without 8 and i: layers 9-11 for each i < 8, those after i for the others; the dense model's last layer
    assert kept == 8 * 3 + (2 + 1 + 0) + 1
    # all of the dense model, layers 9 and 10 without 8, all after i except layer 8
    assert again == 12 + 2 + sum(11 - i - 1 for i in range(8)) + (2 + 1 + 0)


def test_hidden_states_are_cached_within_the_limit():
    model, text = pico("llama"), tokens((12, 12, 12))
    here = subject(model, text)
    one = 12 * 64 * 4  # hidden states of one sequence
    here.dense.prefixes.max_bytes = 10 * one + 1
    Kl(batch=1)(here)
    assert here.dense.prefixes.bytes_held == 10 * one == sum(h.nbytes for h in here.dense.prefixes.streams.values())
    assert Kl(batch=1)(here, (2,)).layers == Kl(batch=1)(subject(model, text), (2,)).layers
    assert here.dense.prefixes.bytes_held <= here.dense.prefixes.max_bytes


def test_any_subnetworks_together_equal_each_alone():
    model, text = pico("qwen2"), tokens()
    drops = [(0, 4), (1,), (), (0, 1, 2), (0, 4, 5)]
    here, metric = subject(model, text), Perplexity(batch=3)
    sums, counts = shared_prefix.measure_subnetworks(here.dense, drops, "layer", metric.reading(here, 4))
    values = metric.without(here, drops, "layer", samples=4)
    assert values == pytest.approx((sums.sum(1) / counts.sum()).exp().tolist())
    assert sums.shape == (5, 4) and counts.tolist() == [8, 11, 4, 11]
    for place, drop in enumerate(drops):
        with layers.bypass_layers(model, drop):
            for row in range(4):
                ids = text.ids[row][: text.lengths[row]]
                loss = -log_p(model, ids)[range(len(ids) - 1), ids[1:]].sum().item()
                assert sums[place, row].item() == pytest.approx(loss, rel=1e-5)


def test_bootstrap_agrees_with_the_standard_error():
    model, text = pico("llama"), tokens((12,) * 40)
    scores = Perplexity(batch=8)(subject(model, text))
    assert scores.draws.std(0) == pytest.approx(scores.layers_stderr, rel=0.3)
    shares = scores.wins(range(6), 1)
    assert sum(shares.values()) == pytest.approx(1) and list(shares.values()) == sorted(shares.values(), reverse=True)
