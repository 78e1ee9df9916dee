from types import SimpleNamespace
from typing import Any

import pytest
import torch

from depthcut.metric.magnitude import Magnitude
from depthcut.metric.random import Random
from depthcut.model.pico import Pico


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Any:
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    model = Pico(layers=4, hidden=32, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=heal)
    return SimpleNamespace(checkpoint=model.open(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("power", [1, 2])
def test_the_magnitude_is_the_sum_over_a_layers_weights(lab, power):
    scores = Magnitude(power=power)(lab)
    model = lab.checkpoint.load(None, quantise="none", dtype="float32", device="cpu")
    wanted = [sum(p.double().abs().pow(power).sum().item() for p in layer.parameters()) for layer in model.model.layers]
    assert scores.layers == pytest.approx(wanted, rel=1e-9)
    assert scores.block(1, 2) == pytest.approx(wanted[1] + wanted[2])
    assert scores.summed


def test_the_magnitude_reads_each_layer_once_and_nothing_else(lab):
    before = lab.checkpoint.bytes_read
    Magnitude(power=1)(lab)
    layers = [tensor.nbytes for index in range(4) for tensor in lab.checkpoint.tensors(index).values()]
    assert lab.checkpoint.bytes_read - before == sum(layers)


def test_random_scores_depend_on_the_seed_alone(lab):
    assert Random(seed=1)(lab).layers == Random(seed=1)(lab).layers != Random(seed=2)(lab).layers
    assert torch.tensor(Random(seed=1)(lab).layers).unique().numel() == 4
