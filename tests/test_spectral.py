import math
from typing import Any

import numpy as np
import pytest
import torch

import builders
from depthcut.metric.spectral import Spectral, gram_eigenvalues, hill_exponent
from depthcut.model.checkpoint import loading
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import layers
from depthcut.model.pico import Pico
from depthcut.study.standalone import Standalone
from pico import pico


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Any:
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    model = Pico(layers=4, hidden=32, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=heal)
    return Standalone(dense=builders.on_disk(model.open(tmp_path_factory.mktemp("cache"))))


def saved(model, folder) -> Any:
    """Open a run whose checkpoint holds ``model``."""
    with loading.quiet_transformers():
        model.save_pretrained(folder)
    files = ModelFolder(folder, HashCache(folder.parent / "hashes.json"))
    return Standalone(dense=builders.on_disk(Checkpoint(files, separator=None)))


def by_hand(weight: torch.Tensor) -> float:
    """Compute the definition, with 1-based indices, from numpy's singular values."""
    matrix = weight.detach().double().numpy()
    lambdas = sorted(np.linalg.svd(matrix, compute_uv=False) ** 2)
    n = np.linalg.matrix_rank(matrix)
    lambdas = [0.0, *lambdas[-n:]]
    k = n // 2
    return 1 + k / sum(math.log(lambdas[n - i + 1] / lambdas[n - k]) for i in range(1, k + 1))


def power_law(alpha: float, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Return a matrix whose eigenvalues are the quantiles of a density proportional to ``lambda ** -alpha``."""
    chance = np.random.default_rng(seed)
    n = min(rows, columns)
    lambdas = ((np.arange(n) + 0.5) / n) ** (-1 / (alpha - 1))
    u, v = (np.linalg.qr(chance.standard_normal((size, n)))[0] for size in (rows, columns))
    return torch.from_numpy(u * np.sqrt(lambdas) @ v.T).float()


@pytest.mark.parametrize("unit", ["layer", "attention", "mlp"])
def test_score_is_minus_the_mean_exponent(here, unit):
    model = here.dense.load()
    parts = [layer.get_submodule(layers.unit_name(layer, unit)) for layer in model.model.layers]
    wanted = [-np.mean([by_hand(p) for p in part.parameters() if p.ndim == 2]) for part in parts]
    scores = Spectral()(here, unit=unit)
    assert scores.layers == pytest.approx(wanted, rel=1e-6)
    assert (scores.depth, scores.samples, scores.summed) == (4, 0, True)


def test_fused_experts_are_scored_as_separate_matrices(tmp_path):
    sizes = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2, "head_dim": 16}
    model = pico("gpt_oss", layers=2, **sizes)
    wanted: list[float] = []
    for layer in layers.layer_list(model):
        stacks = [each.reshape(-1, *each.shape[-2:]) for each in layer.parameters() if each.ndim > 1]
        wanted.append(-np.mean([by_hand(matrix) for stack in stacks for matrix in stack]))
    assert Spectral()(saved(model, tmp_path / "model")).layers == pytest.approx(wanted, rel=1e-5)


def test_matrices_are_read_once_and_nothing_else(here):
    before = here.dense.checkpoint.bytes_read
    Spectral()(here)
    tensors = [tensor for index in range(4) for tensor in here.dense.tensors(index).values()]
    assert here.dense.checkpoint.bytes_read - before == sum(t.nbytes for t in tensors if len(t.get_shape()) == 2)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5, 6.0])
@pytest.mark.parametrize("shape", [(400, 400), (400, 900), (900, 400)])
def test_power_law_matrix_recovers_its_exponent(alpha, shape):
    """To 1 % of alpha - 1: the quantiles of n eigenvalues stand for the density, off by about 1 / n."""
    weight = power_law(alpha, *shape)
    assert hill_exponent(gram_eigenvalues(weight)) == pytest.approx(alpha, abs=0.01 * (alpha - 1))
    assert hill_exponent(gram_eigenvalues(1e-3 * weight)) == pytest.approx(
        hill_exponent(gram_eigenvalues(weight)), rel=1e-4
    )


def test_least_trained_layer_goes_first(tmp_path):
    """All of its matrices fall off more steeply, so its score is the lowest; and it is minus the exponent."""
    alphas = [2.0, 4.0, 2.5, 3.0]
    model = pico("llama", layers=4)
    with torch.no_grad():
        for alpha, layer in zip(alphas, layers.layer_list(model), strict=True):
            for weight in layer.parameters():
                if weight.ndim == 2:
                    weight.copy_(power_law(alpha, *weight.shape))
    scores = Spectral()(saved(model, tmp_path / "model")).layers
    assert scores is not None
    assert np.argsort(scores).tolist() == [1, 3, 2, 0]
    assert scores == pytest.approx([-alpha for alpha in alphas], rel=0.05)  # matrices of 32 and 64 eigenvalues


def test_zero_eigenvalues_are_left_out():
    """Those that float32 rounding left of a product as well, not only exact ones."""
    factor = power_law(3.0, 400, 100)
    for low in (factor @ torch.eye(100, 300), factor @ power_law(2.0, 100, 300)):
        assert low.shape == (400, 300)
        kept = gram_eigenvalues(low)
        assert len(kept) == 100 and kept.min() > 0
        wanted = np.linalg.eigvalsh(low.T.double().numpy() @ low.double().numpy())[-100:]
        np.testing.assert_allclose(kept.numpy(), wanted, rtol=1e-6)
        assert hill_exponent(kept) == pytest.approx(1 + 50 / np.log(wanted[50:] / wanted[49]).sum(), rel=1e-6)


def test_spectra_without_a_tail_stay_finite():
    orthogonal = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0])
    flat = hill_exponent(gram_eigenvalues(orthogonal))
    assert flat is not None and 1e5 < flat < 1e7
    assert hill_exponent(gram_eigenvalues(torch.ones(8, 5))) is None  # of rank 1
    assert hill_exponent(gram_eigenvalues(torch.zeros(8, 5))) is None


def test_identity_layer_is_scored_by_remaining_matrices(tmp_path):
    model = pico("llama", layers=3)
    layer = layers.layer_list(model)[1]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    scores = Spectral()(saved(model, tmp_path / "model")).layers
    assert scores is not None
    left = [p for name, p in layer.named_parameters() if p.ndim == 2 and "o_proj" not in name and "down" not in name]
    assert scores[1] == pytest.approx(-np.mean([by_hand(p) for p in left]), rel=1e-6)


def test_unit_without_a_matrix_is_refused(tmp_path):
    model = pico("llama", layers=3)
    with torch.no_grad():
        for weight in layers.layer_list(model)[1].mlp.parameters():
            weight.zero_()
    here = saved(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"metric=spectral .* the mlp of layer 1 has none"):
        Spectral()(here, unit="mlp")
    assert len(Spectral()(here).layers or []) == 3
