import dataclasses
import math

import numpy as np
import pytest
import torch

from builders import make_identity, subject, tokens
from depthcut.data.text.tokens import Tokens
from depthcut.metric.angular import Angular
from depthcut.metric.block_influence import BlockInfluence
from depthcut.metric.passes.block_scores import pairwise_cosines, score_blocks, usable_tokens
from depthcut.metric.passes.hidden_states import HiddenStates
from depthcut.metric.update import Update
from depthcut.study.standalone import Standalone
from pico import pico

LAST = Angular(token="last", batch=2, until=None)
METRICS = {
    "angular_last": LAST,
    "angular_all": Angular(token="all", batch=2, until=None),
    "block_influence": BlockInfluence(batch=2, until=None),
    "update_1": Update(norm=1, relative=False, batch=2, until=None),
    "update_2": Update(norm=2, relative=False, batch=2, until=None),
    "update_2_relative": Update(norm=2, relative=True, batch=2, until=None),
}


def score(metric, model, text: Tokens, batch: int = 2):
    return dataclasses.replace(metric, batch=batch)(subject(model, text))


def pair(name: str, x: np.ndarray, y: np.ndarray) -> float:
    """Compute the formulas for two vectors."""
    cosine = min(1.0, max(-1.0, x @ y / math.sqrt((x @ x) * (y @ y))))
    match name:
        case "angular_last" | "angular_all":
            return math.acos(cosine) / math.pi
        case "block_influence":
            return 1 - cosine
        case "update_1":
            return np.abs(y - x).sum()
        case "update_2":
            return math.sqrt(((y - x) ** 2).sum())
        case _:
            return math.sqrt(((y - x) ** 2).sum() / (x**2).sum())


def by_hand(name: str, model, text: Tokens) -> np.ndarray:
    """Score in numpy, one sequence and one token at a time, without padding, hooks or batches."""
    rows = []
    for ids, length in zip(text.ids, text.lengths, strict=True):
        with torch.no_grad():
            out = model(torch.from_numpy(ids[None, :length].astype(np.int64)), output_hidden_states=True)
        x = [state[0].double().numpy() for state in out.hidden_states[:-1]]  # the last one is after the final norm
        tokens = [length - 1] if name == "angular_last" else range(length)
        row = np.zeros((len(x), len(x)))
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                row[i, j] = np.mean([pair(name, x[i][t], x[j][t]) for t in tokens])
        rows.append(row)
    return np.stack(rows)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equals_the_formula_computed_by_hand(name, batch):
    model, text = pico("llama"), tokens()
    scores = score(METRICS[name], model, text, batch)
    rows = by_hand(name, model, text)
    edges = len(rows[0])
    got = np.array(scores.between)[:edges, :edges]
    np.testing.assert_allclose(got, rows.mean(0), rtol=1e-5, atol=1e-6)
    stderr = rows.std(0, ddof=1) / math.sqrt(len(rows))
    np.testing.assert_allclose(np.array(scores.between_stderr)[:edges, :edges], stderr, rtol=1e-4, atol=1e-6)
    assert (scores.samples, scores.left_out, scores.depth) == (5, 0, 6)


@pytest.mark.parametrize("name", METRICS)
def test_identity_layer_scores_zero_and_is_dropped_first(name):
    model = pico("llama")
    make_identity(model, 3)
    scores = score(METRICS[name], model, tokens())
    assert scores.block(3, 1) < 1e-6
    assert min(scores.block(start, 1) for start in (0, 1, 2, 4)) > 0.001
    assert min(range(5), key=lambda start: scores.block(start, 1)) == 3


def test_doubling_layer_has_its_known_score():
    """The direction does not change, so the angle is 0; the update is as large as the input."""
    x = torch.randn(7, 1, 16, dtype=torch.float64)
    states_NED = torch.cat([x, 2 * x], dim=1)
    assert pairwise_cosines(states_NED)[:, 0, 1].allclose(torch.ones(7, dtype=torch.float64))
    assert (
        Update(norm=2, relative=True, batch=1, until=None)
        .compare(states_NED)[:, 0, 1]
        .allclose(torch.ones(7, dtype=torch.float64))
    )
    wanted = x[:, 0].abs().sum(-1)
    assert Update(norm=1, relative=False, batch=1, until=None).compare(states_NED)[:, 0, 1].allclose(wanted)


def test_last_boundary_precedes_the_final_norm():
    """An identity last layer scores 0; after the final norm (weights that are not all equal) it would not."""
    model = pico("llama")
    make_identity(model, 5)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(-2, 2, len(model.model.norm.weight)))
    assert score(LAST, model, tokens()).block(5, 1) < 1e-6


def test_padding_side_does_not_change_scores():
    model, text = pico("llama"), tokens((7, 12, 4))
    ids, mask = next(text.batches(3))
    left_ids, left_mask = ids.clone(), mask.clone()
    for row, length in enumerate(text.lengths):
        left_ids[row], left_mask[row] = ids[row].roll(12 - int(length)), mask[row].roll(12 - int(length))

    class Given(Tokens):
        def batches(self, size):
            yield (left_ids, left_mask) if size == 3 else (ids, mask)

    def angles(size):
        given = Given(text.ids, text.lengths, text.documents, "x")
        states = HiddenStates(subject=subject(model, given), name="x", batch=size, token="last").samples()
        return torch.cat([pairwise_cosines(rows) for rows in states]).arccos() / math.pi

    torch.testing.assert_close(angles(3), angles(4), atol=1e-5, rtol=0)


def test_small_angles_survive_bfloat16_states():
    """cos rounds to 1 in bfloat16 long before the angle is 0: the states may be rounded, the cosine may not."""
    u = torch.randn(1, 4096, dtype=torch.float64)
    v = torch.randn(1, 4096, dtype=torch.float64)
    v -= (v @ u.T) / (u @ u.T) * u
    true = 0.02
    w = math.cos(math.pi * true) * u / u.norm() + math.sin(math.pi * true) * v / v.norm()
    states_NED = torch.stack([u / u.norm(), w], dim=1).to(torch.bfloat16).double()
    assert (pairwise_cosines(states_NED).arccos() / math.pi)[0, 0, 1].item() == pytest.approx(true, abs=5e-4)


def test_unusable_samples_are_skipped_and_counted():
    states_NED = torch.randn(4, 3, 8)
    states_NED[0, 1, 3] = float("nan")
    states_NED[1, 2, 0] = float("inf")
    states_NED[2, 0] = 0
    assert usable_tokens(states_NED).tolist() == [False, False, False, True]
    model = pico("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    text = tokens()
    text.ids[0, 0] = 5
    text.ids[1:][text.ids[1:] == 5] = 6
    scores = score(LAST, model, text)
    assert (scores.samples, scores.left_out) == (4, 1)
    text.ids[:, 0] = 5
    with pytest.raises(ValueError, match="none of the 5 calibration samples"):
        score(LAST, model, text)


def test_metric_leaves_the_model_unchanged():
    model = pico("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score(LAST, model, tokens())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_sequential_reading_stops_when_one_start_is_sure():
    """Of 128 samples 16 or 32 settle which single layer is an identity; the scores are those of the samples read."""
    model, text = pico("llama"), tokens((12,) * 128)
    make_identity(model, 3)
    here = subject(model, text)
    here.wanted = lambda: (range(5), 1)
    scores = dataclasses.replace(LAST, until=0.95)(here)
    assert scores.samples == 16
    assert scores.wins(range(5), 1) == {3: 1.0}
    assert scores.between == score(LAST, model, text.first(16)).between


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alike(HiddenStates):
    """Hidden states from one distribution at every boundary, so no block is better than another."""

    def samples(self):
        yield from torch.randn(40, 1, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_sequential_reading_continues_while_unsure():
    here = Standalone(block=(range(4), 1))
    scores = score_blocks(
        Alike(subject=here, name="x", batch=1, token="last", until=0.99), lambda states: pairwise_cosines(states)
    )
    assert scores.samples == 40
    assert 0.25 < max(scores.wins(range(4), 1).values()) < 0.99


def test_block_bootstrap_agrees_with_the_standard_error():
    scores = score(LAST, pico("llama"), tokens((12,) * 60))
    spread = scores.draws.std(0)[0, 1:]
    assert spread == pytest.approx(scores.between_stderr[0][1:], rel=0.25)
