import math

import numpy as np
import pytest
import torch

from depthcut import depth
from depthcut.metric.angular import Angular, distances, last_token_states
from depthcut.prune.block import Block
from depthcut.text import Tokens
from pico import pico


def tokens(lengths=(9, 12, 5, 12, 7), width=12) -> Tokens:
    ids = np.random.default_rng(0).integers(3, 100, (len(lengths), width), dtype=np.int32)
    return Tokens(
        ids=ids, lengths=np.array(lengths, dtype=np.int32), documents=np.array([], dtype=np.uint64), digest="x"
    )


def make_identity(model, layer: int) -> None:
    """A layer that adds nothing to the residual stream."""
    block = depth.layers(model)[layer]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()


def by_hand(model, text: Tokens) -> np.ndarray:
    """Equation 7 one sequence at a time, without padding, hooks or batches, in numpy."""
    rows = []
    for ids, length in zip(text.ids, text.lengths, strict=True):
        with torch.no_grad():
            states = model(
                torch.from_numpy(ids[None, :length].astype(np.int64)), output_hidden_states=True
            ).hidden_states
        x = [state[0, -1].double().numpy() for state in states[:-1]]  # the last one is behind the final norm
        row = np.zeros((len(x), len(x)))
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                cosine = x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]))
                row[i, j] = math.acos(min(1.0, max(-1.0, cosine))) / math.pi
        rows.append(row)
    return np.stack(rows)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equals_the_formula_computed_by_hand(batch):
    model, text = pico("llama"), tokens()
    scores = Angular(batch=batch)(model, text)
    rows = by_hand(model, text)
    edges = len(rows[0])
    got = np.array(scores.between)[:edges, :edges]
    np.testing.assert_allclose(got, rows.mean(0), atol=1e-6)
    stderr = rows.std(0, ddof=1) / math.sqrt(len(rows))
    np.testing.assert_allclose(np.array(scores.stderr)[:edges, :edges], stderr, atol=1e-6)
    assert (scores.samples, scores.left_out, scores.depth) == (5, 0, 6)


def test_an_identity_layer_scores_zero_and_goes_first():
    model = pico("llama")
    make_identity(model, 3)
    scores = Angular(batch=2)(model, tokens())
    assert scores.block(3, 1) < 1e-6
    assert min(scores.block(start, 1) for start in (0, 1, 2, 4)) > 0.01
    plan = Block(frac=1 / 6, keep_first=0, keep_last=1)(lambda: scores, 6)
    assert plan.drop == (3,)


def test_the_last_edge_is_before_the_final_norm():
    """An identity last layer scores 0; behind the final norm (weights that are not all equal) it would not."""
    model = pico("llama")
    make_identity(model, 5)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(-2, 2, len(model.model.norm.weight)))
    assert Angular(batch=2)(model, tokens()).block(5, 1) < 1e-6


def test_padding_on_either_side_gives_the_same():
    model, text = pico("llama"), tokens((7, 12, 4))
    ids, mask = next(text.batches(3))
    left_ids, left_mask = ids.clone(), mask.clone()
    for row, length in enumerate(text.lengths):
        left_ids[row], left_mask[row] = ids[row].roll(12 - int(length)), mask[row].roll(12 - int(length))
    with torch.no_grad():
        right = distances(last_token_states(model, ids, mask, 6))[0]
        left = distances(last_token_states(model, left_ids, left_mask, 6))[0]
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_small_angles_survive_bfloat16_states():
    """cos rounds to 1 in bfloat16 long before the angle is 0: the states may be rounded, the cosine may not."""
    u = torch.randn(1, 4096, dtype=torch.float64)
    v = torch.randn(1, 4096, dtype=torch.float64)
    v -= (v @ u.T) / (u @ u.T) * u
    true = 0.02
    w = math.cos(math.pi * true) * u / u.norm() + math.sin(math.pi * true) * v / v.norm()
    edges = torch.stack([u / u.norm(), w]).to(torch.bfloat16)
    assert distances(edges)[0][0, 0, 1].item() == pytest.approx(true, abs=5e-4)


def test_samples_that_are_not_finite_or_zero_are_left_out_and_counted():
    edges = torch.randn(3, 4, 8)
    edges[1, 0, 3] = float("nan")
    edges[2, 1, 0] = float("inf")
    edges[0, 2] = 0
    assert distances(edges)[1].tolist() == [False, False, False, True]
    model = pico("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    text = tokens()
    text.ids[0, 0] = 5
    text.ids[1:][text.ids[1:] == 5] = 6
    scores = Angular(batch=2)(model, text)
    assert (scores.samples, scores.left_out) == (4, 1)
    text.ids[:, 0] = 5
    with pytest.raises(ValueError, match="none of the 5 calibration samples"):
        Angular(batch=2)(model, text)


def test_the_model_is_left_as_it_was():
    model = pico("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Angular(batch=2)(model, tokens())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
