import math
from typing import Any

import numpy as np
import pytest
import torch

from builders import subject
from depthcut.cut.scores import bootstrap_weights
from depthcut.data.text.tokens import Tokens
from depthcut.metric.linearity import Linearity
from depthcut.metric.passes.linear_fit import unexplained_shares
from depthcut.model.decoder import layers as decoder_layers
from pico import pico

KINDS = ("least_squares", "procrustes")


def tokens(lengths=(30, 40, 25, 40, 35), width=40) -> Tokens:
    ids = np.random.default_rng(0).integers(3, 100, (len(lengths), width), dtype=np.int32)
    return Tokens(ids, np.array(lengths, dtype=np.int32), np.array([], dtype=np.uint64), "x")


def score(model, text: Tokens, kind: Any, most: int = 4096, batch: int = 2, removed: tuple[int, ...] = ()):
    return Linearity(map=kind, tokens=most, batch=batch)(subject(model, text), removed)


def states(model, text: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return the states (E x N x D) at all boundaries but the last, without padding, and the sample of each token."""
    rows, samples = [], []
    for sample, (ids, length) in enumerate(zip(text.ids, text.lengths, strict=True)):
        with torch.no_grad():
            out = model(torch.from_numpy(ids[None, :length].astype(np.int64)), output_hidden_states=True)
        rows.append(torch.cat(out.hidden_states[:-1]).double().numpy())  # the last one is after the final norm
        samples += [sample] * length
    return np.concatenate(rows, axis=1), np.array(samples)


def residual(kind: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the residual of normalised, centred states by lstsq, or by scipy's orthogonal Procrustes."""
    x, y = ((each - each.mean(0)) / np.linalg.norm(each - each.mean(0)) for each in (x, y))
    if kind == "least_squares":
        solution, _, rank, _ = np.linalg.lstsq(x, y, rcond=1e-7)
        return y - x @ solution, int(rank)
    u, s, vh = np.linalg.svd(x.T @ y)
    left = y - s.sum() * x @ u @ vh
    assert np.linalg.norm(left) ** 2 == pytest.approx(1 - s.sum() ** 2, abs=1e-9)  # the closed form
    return left, 0


def by_hand(kind: str, x: np.ndarray, y: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """Return the rank-adjusted share and its standard error, that of a ratio of sums over the samples."""
    left, rank = residual(kind, x, y)
    share = np.linalg.norm(left) ** 2
    whole = ((y - y.mean(0)) ** 2).sum(1) / ((y - y.mean(0)) ** 2).sum()
    each = [(left[samples == s] ** 2).sum() - share * whole[samples == s].sum() for s in set(samples)]
    correction = (len(y) - 1) / (len(y) - rank - 1)
    return share * correction, math.sqrt(len(each) * np.var(each, ddof=1)) * correction


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "most"), [(1, 4096), (2, 150), (5, 97)])
def test_equals_the_formula_computed_by_hand(kind, batch, most):
    model, text = pico("llama"), tokens()
    scores = score(model, text, kind, most, batch)
    x, samples = states(model, text)
    count = min(most, 170)
    chosen = np.array([index * 170 // count for index in range(count)])
    for i in range(6):
        for j in range(i + 1, 6):
            share, stderr = by_hand(kind, x[i][chosen], x[j][chosen], samples[chosen])
            assert scores.between[i][j] == pytest.approx(share, rel=1e-5)
            assert scores.between_stderr[i][j] == pytest.approx(stderr, rel=1e-4)
    assert (scores.depth, scores.samples, scores.left_out, scores.summed) == (6, 5, 0, False)
    weight = bootstrap_weights(5)[17][samples[chosen]]  # a draw counts each sample's tokens so many times
    left, rank = residual(kind, x[1][chosen], x[3][chosen])
    whole = ((x[3][chosen] - x[3][chosen].mean(0)) ** 2).sum(1)
    share = weight @ (left**2).sum(1) / (weight @ whole / whole.sum()) * (count - 1) / (count - 1 - rank)
    assert scores.draws[17, 1, 3] == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_layer_scores_zero_and_is_dropped_first(kind):
    model = pico("llama")
    with torch.no_grad():
        decoder_layers.layer_list(model)[3].self_attn.o_proj.weight.zero_()
        decoder_layers.layer_list(model)[3].mlp.down_proj.weight.zero_()
    scores = score(model, tokens(), kind)
    assert scores.block(3, 1) < 1e-10
    assert min(scores.block(start, 1) for start in (0, 1, 2, 4, 5)) > 0.01


def chain(*maps, tokens: int = 200, width: int = 12) -> torch.Tensor:
    """Return states (E x N x D) at all boundaries, each mapped from the ones before."""
    chance = torch.Generator().manual_seed(0)
    x = [torch.randn(tokens, width, generator=chance, dtype=torch.float64) * torch.logspace(-1, 1, width) + 5]
    for apply in maps:
        x.append(apply(x[-1], torch.randn(width, width, generator=chance, dtype=torch.float64)))
    return torch.stack(x).float()


def shares(states_END: torch.Tensor, kind: Any) -> np.ndarray:
    samples_N = torch.arange(states_END.shape[1]) // 20
    return np.array(unexplained_shares(states_END, samples_N, kind, "cpu")[0])


def test_maps_with_known_scores():
    """Layers that are linear, that turn, that double, that add a linear map, and that are not linear."""
    layers = (
        lambda x, noise: x @ noise + 1,
        lambda x, noise: x @ torch.linalg.qr(noise)[0],
        lambda x, noise: 2 * x,  # noqa: ARG005
        lambda x, noise: x + x @ noise,
        lambda x, noise: x.abs() @ noise,
    )
    least, turned = (shares(chain(*layers), kind) for kind in KINDS)
    linear = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    assert max(least[i, j] for i, j in linear) < 1e-8
    assert least[4, 5] > 0.1
    assert max(turned[1, 2], turned[2, 3], turned[1, 3]) < 1e-10  # any turn and any scale
    assert min(turned[0, 1], turned[3, 4], turned[4, 5]) > 0.01
    equal = shares(torch.stack([each := chain()[0], each, each]), "least_squares")
    assert equal[np.triu_indices(3, 1)].max() < 1e-10


def test_unrelated_states_score_one_on_few_tokens():
    """Without the correction for the rank, 12 columns would explain 12 of 39 by chance; 200 trials settle it to 1 %."""
    trials = [torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert np.mean([shares(x, "least_squares")[0, 1] for x in trials]) == pytest.approx(1, abs=0.01)


def test_dependent_and_constant_columns_do_not_count():
    x, y = chain(lambda x, noise: x.abs() @ noise)
    full = shares(torch.stack([x, y]), "least_squares")[0, 1]
    for more in (x[:, :3], x[:, :1] + 2 * x[:, 4:5], torch.full((200, 1), 7.3), torch.zeros(200, 2)):
        padded = torch.cat([more, x, more], dim=1)
        got = shares(torch.stack([padded, torch.nn.functional.pad(y, (0, padded.shape[1] - 12))]), "least_squares")
        assert got[0, 1] == pytest.approx(full, rel=1e-5)


def test_tokens_without_usable_states_are_left_out():
    """One of which the state is zero at some boundary goes alone; one that is not finite spoils its whole sample."""
    model, text = pico("llama"), tokens()
    text.ids[np.isin(text.ids, (5, 7))] = 6
    text.ids[1, 10], text.ids[1, 31], text.ids[3, 20] = 7, 7, 5
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
        model.get_input_embeddings().weight[7] = 0
    scores = score(model, text, "least_squares")
    assert (scores.samples, scores.left_out) == (4, 1)
    x, samples = states(model, text)
    good = (samples != 3) & (x[0] != 0).any(-1)
    assert good.sum() == 170 - 40 - 2
    share, stderr = by_hand("least_squares", x[2][good], x[4][good], samples[good])
    assert (scores.block(2, 2), scores.block_stderr(2, 2)) == pytest.approx((share, stderr), rel=1e-4)


def test_removed_layers_are_absent():
    text = tokens()
    for kind in KINDS:
        got = score(pico("llama"), text, kind, removed=(1, 4))
        wanted = score(decoder_layers.cut_layers(pico("llama"), (1, 4)), text, kind)
        np.testing.assert_allclose(got.between, wanted.between, rtol=1e-6)
        assert got.depth == 4


def test_too_few_tokens_fail_before_and_after_scoring():
    model = pico("llama")
    for text, most, got in ((tokens((30, 35)), 4096, 65), (tokens(), 50, 50)):
        words = rf"least_squares needs at least 66 usable tokens, got {got}: .*data\.calibration.*metric\.tokens"
        with pytest.raises(ValueError, match=words):
            score(model, text, "least_squares", most)
    assert score(model, tokens((30, 35)), "procrustes").block(0, 6) > 0


def test_no_usable_token_is_refused():
    model = pico("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = float("nan")
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"usable tokens, got 0"):
            score(model, tokens(), kind)
