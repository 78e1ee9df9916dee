import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from depthcut import depth, removal
from depthcut.metric.kl import Kl
from depthcut.metric.perplexity import Perplexity
from depthcut.text import Tokens
from pico import FAMILIES, pico


def tokens(lengths=(9, 12, 5, 12, 7), width=12) -> Tokens:
    ids = np.random.default_rng(0).integers(3, 100, (len(lengths), width), dtype=np.int32)
    return Tokens(
        ids=ids, lengths=np.array(lengths, dtype=np.int32), documents=np.array([], dtype=np.uint64), digest="x"
    )


def lab(model, text: Tokens) -> Any:
    return SimpleNamespace(dense=lambda: model, calibration=lambda: text)


def log_p(model, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(ids[None].astype(np.int64))).logits[0, :-1].double().log_softmax(-1)


def naive(model, text: Tokens) -> tuple[list[float], list[float]]:
    """Each layer bypassed in turn, one sequence at a time: perplexities and divergences."""
    perplexities, divergences = [], []
    for layer in range(len(depth.layers(model))):
        losses, diverged = [], []
        for row, length in zip(text.ids, text.lengths, strict=True):
            ids = row[:length]
            dense = log_p(model, ids)
            with depth.bypass(model, [layer]):
                without = log_p(model, ids)
            losses += (-without[range(length - 1), ids[1:]]).tolist()
            diverged += (dense.exp() * (dense - without)).sum(-1).tolist()
        perplexities.append(math.exp(np.mean(losses)))
        divergences.append(np.mean(diverged))
    return perplexities, divergences


@pytest.mark.parametrize("family", FAMILIES)
def test_all_candidates_in_one_pass_equal_each_on_its_own(family):
    model, text = pico(family), tokens()
    perplexities, divergences = naive(model, text)
    for batch in (1, 3):
        assert Perplexity(batch=batch)(lab(model, text)).layers == pytest.approx(perplexities, rel=1e-5)
        assert Kl(batch=batch)(lab(model, text)).layers == pytest.approx(divergences, rel=1e-4, abs=1e-6)


def test_the_logits_are_those_of_the_model_without_the_layer_to_the_bit():
    model = pico("llama")
    ids = torch.from_numpy(tokens((12, 12)).ids.astype(np.int64))
    inputs = {"input_ids": ids, "attention_mask": None, "use_cache": False}
    with torch.inference_mode():
        output, without = removal.streams(model, inputs)
        with removal.tail(model, inputs, output) as logits_of:
            branched = [logits_of(h) for h in without]
        for layer, got in enumerate(branched):
            with depth.bypass(model, [layer]):
                assert torch.equal(got, model(**inputs).logits)


@pytest.mark.parametrize("metric", [Perplexity(batch=3), Kl(batch=3)])
def test_what_is_left_is_scored_again(metric):
    model, text = pico("gemma2", layers=5), tokens()
    scores = metric(lab(model, text), (1, 3)).layers
    assert len(scores) == 3
    for place, layer in enumerate((0, 2, 4)):
        if isinstance(metric, Kl):
            assert scores[place] == pytest.approx(divergence_without(model, text, [1, 3], layer), rel=1e-4)
        else:
            losses = []
            for row, length in zip(text.ids, text.lengths, strict=True):
                with depth.bypass(model, [1, 3, layer]):
                    losses += (-log_p(model, row[:length])[range(length - 1), row[1:length]]).tolist()
            assert scores[place] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_an_identity_layer_costs_nothing():
    model, text = pico("llama"), tokens()
    with torch.no_grad():
        depth.layers(model)[2].self_attn.o_proj.weight.zero_()
        depth.layers(model)[2].mlp.down_proj.weight.zero_()
    divergence = Kl(batch=2)(lab(model, text)).layers
    assert divergence[2] < 1e-6 and min(d for i, d in enumerate(divergence) if i != 2) > 1e-3


def test_half_of_the_naive_layer_passes_are_made_and_the_model_is_left_as_it_was():
    model, text = pico("llama", layers=12), tokens((12, 12))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stack = list(depth.layers(model))
    passes = 0

    def counted(forward):
        def call(*args, **kwargs):
            nonlocal passes
            passes += 1
            return forward(*args, **kwargs)

        return call

    for layer in stack:
        layer.self_attn.forward = counted(layer.self_attn.forward)
    Kl(batch=2)(lab(model, text))
    naive_passes = 12 * 11
    assert passes == 12 + 12 * 11 // 2 <= 0.6 * naive_passes  # 0.55 from 20 layers on
    assert list(depth.layers(model)) == stack and all("forward" not in vars(layer) for layer in stack)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_standard_error_is_that_of_a_ratio_over_the_sequences():
    """With sequences of equal length it is the plain standard error of their means."""
    model, text = pico("llama"), tokens((12, 12, 12, 12))
    _, stderr = removal.without_each(lab(model, text), (), 2, Perplexity(batch=1).loss, "x")
    rows = []
    for ids in text.ids:
        with depth.bypass(model, [1]):
            found = log_p(model, ids)
        rows.append(-found[range(11), ids[1:]].mean().item())
    assert stderr[1].item() == pytest.approx(np.std(rows, ddof=1) / 2, rel=1e-4)


def test_greedy_on_a_real_model_is_what_bypassing_in_turn_gives():
    from depthcut.prune.greedy import Greedy

    model, text = pico("llama"), tokens()

    def score(removed=()):
        return Kl(batch=3)(lab(model, text), removed)

    plan = Greedy(frac=0.5, keep_first=0, keep_last=1)(score, 6)
    removed: list[int] = []
    for _ in range(3):
        left = [layer for layer in range(5) if layer not in removed]
        removed.append(min(left, key=lambda layer: divergence_without(model, text, removed, layer)))
    assert plan.notes["order"] == removed


def divergence_without(model, text: Tokens, removed: list[int], layer: int) -> float:
    """From the whole model, not from the one that is left."""
    found = []
    for row, length in zip(text.ids, text.lengths, strict=True):
        ids = row[:length]
        dense = log_p(model, ids)
        with depth.bypass(model, [*removed, layer]):
            found += (dense.exp() * (dense - log_p(model, ids))).sum(-1).tolist()
    return float(np.mean(found))
