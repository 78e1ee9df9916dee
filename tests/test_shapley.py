"""Sampled Shapley values against the definition over all sub-networks."""

from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
import torch

from builders import subject, tokens
from depthcut.metric.shapley import Shapley
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import layerwise
from pico import pico

WHOLE = Shapley(orders=4, reach=1.0, seed=0, batch=3)


def loss(model, text, gone) -> float:
    """Return the loss without the layers ``gone``, which may be all of them, one sequence at a time."""
    found = []
    for row, length in zip(text.ids, text.lengths, strict=True):
        ids = torch.from_numpy(row[None, :length].astype(np.int64))
        with torch.no_grad():
            way = layerwise.start_forward(model, {"input_ids": ids, "attention_mask": None, "use_cache": False})
            h = way.h_BTD
            for index in range(len(way.stack)):
                h = h if index in gone else way.step(index, h)
            log_p = way.logits(h)[0, :-1].double().log_softmax(-1)
        found += (-log_p[range(length - 1), ids[0, 1:]]).tolist()
    return float(np.mean(found))


def by_definition(model, text, layers: int) -> list[float]:
    """Return the weighted sum over all sets of other removed layers."""
    values = {}
    for size in range(layers + 1):
        for gone in combinations(range(layers), size):
            values[gone] = loss(model, text, gone)
    result = []
    for layer in range(layers):
        others = [other for other in range(layers) if other != layer]
        total = 0.0
        for size in range(layers):
            for gone in combinations(others, size):
                rise = values[tuple(sorted((*gone, layer)))] - values[gone]
                total += rise / (layers * comb(layers - 1, size))
        result.append(total)
    return result


def test_over_all_orders_it_is_the_shapley_value():
    model, text = pico("llama", layers=4), tokens()
    orders = [list(order) for order in permutations(range(4))]
    got = WHOLE.scored(subject(model, text), (), "layer", [0, 1, 2, 3], orders)
    assert got.layers == pytest.approx(by_definition(model, text, 4), rel=1e-4)


def test_values_sum_to_the_worth_of_all_layers():
    model, text = pico("gemma2"), tokens()
    got = WHOLE(subject(model, text))
    assert sum(got.layers) == pytest.approx(loss(model, text, range(6)) - loss(model, text, ()), rel=1e-4)


def test_identity_scores_zero_and_equal_layers_alike():
    model, text = pico("llama", layers=4), tokens()
    stack = decoder_layers.layer_list(model)
    with torch.no_grad():
        stack[2].self_attn.o_proj.weight.zero_()
        stack[2].mlp.down_proj.weight.zero_()
    got = Shapley(orders=6, reach=1.0, seed=3, batch=5)(subject(model, text)).layers
    assert abs(got[2]) < 1e-6 < 1e-3 < min(abs(score) for layer, score in enumerate(got) if layer != 2)


def test_limited_reach_samples_layers_and_respects_removals():
    model, text = pico("llama"), tokens()
    got = Shapley(orders=2, reach=0.5, seed=1, batch=5)(subject(model, text), removed=(1,))
    assert got.depth == 5 and all(np.isfinite(got.layers))
    left = [0, 2, 3, 4, 5]
    (first,) = [got.layers[left.index(int(np.random.default_rng(1).permutation(left)[0]))]]
    layer = int(np.random.default_rng(1).permutation(left)[0])
    assert first == pytest.approx(loss(model, text, (1, layer)) - loss(model, text, (1,)), rel=1e-4)


def test_sublayers():
    model, text = pico("llama", layers=4), tokens()
    got = WHOLE(subject(model, text), unit="mlp")
    assert got.depth == 4 and all(np.isfinite(got.layers)) and len(set(got.layers)) == 4


def test_seed_decides_the_sampled_orders():
    model, text = pico("llama", layers=4), tokens((12, 12))
    one, same, other = (
        Shapley(orders=2, reach=0.5, seed=seed, batch=2)(subject(model, text)).layers for seed in (0, 0, 1)
    )
    assert one == same != other
