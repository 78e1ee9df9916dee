import pytest

from depthcut.prune.block import Block
from depthcut.prune.deepest import Deepest
from depthcut.scores import Scores


def scores(depth: int, values: dict[tuple[int, int], float]) -> Scores:
    """All blocks score 1, save those given as (start, stop)."""
    between = [[1.0 if i < j else 0.0 for j in range(depth + 1)] for i in range(depth + 1)]
    for (start, stop), value in values.items():
        between[start][stop] = value
    return Scores(depth=depth, between=between, stderr=[[0.0] * (depth + 1)] * (depth + 1), samples=1, left_out=0)


def never():
    raise AssertionError("the metric was asked")


def test_the_block_with_the_lowest_score_of_that_size_goes():
    """Two public tools answer for n + 1 when they are asked for n: the lowest block of another size must not win."""
    table = scores(8, {(2, 5): 0.1, (4, 6): 0.2, (1, 5): 0.01, (3, 4): 0.001})
    assert Block(frac=3 / 8, keep_first=0, keep_last=1)(lambda: table, 8).drop == (2, 3, 4)
    assert Block(frac=2 / 8, keep_first=0, keep_last=1)(lambda: table, 8).drop == (4, 5)
    assert Block(frac=4 / 8, keep_first=0, keep_last=1)(lambda: table, 8).drop == (1, 2, 3, 4)


def test_the_first_and_last_layers_stay():
    table = scores(6, {(0, 2): 0.1, (4, 6): 0.1, (3, 5): 0.5})
    assert Block(frac=2 / 6, keep_first=1, keep_last=1)(lambda: table, 6).drop == (3, 4)
    assert Block(frac=2 / 6, keep_first=0, keep_last=0)(lambda: table, 6).drop == (0, 1)


def test_the_deepest_block_before_the_last_layer():
    """Gromov et al.: 0-based, drop [L-1-n, L-2], keep L-1."""
    assert Deepest(frac=0.25, keep_first=0, keep_last=1)(never, 32).drop == tuple(range(23, 31))
    assert Deepest(frac=0.5, keep_first=0, keep_last=4)(never, 8).drop == (0, 1, 2, 3)


@pytest.mark.parametrize("prune", [Block, Deepest])
def test_nothing_to_drop_asks_no_metric(prune):
    assert prune(frac=0.0, keep_first=0, keep_last=1)(never, 30).drop == ()


@pytest.mark.parametrize(
    ("frac", "depth", "layers"),
    [(0.27, 30, 8), (0.2, 32, 6), (0.27, 32, 9), (0.35, 32, 11), (0.5, 80, 40), (0.29, 40, 12)],
)
def test_the_fraction_is_rounded_to_the_nearest_layer(frac, depth, layers):
    """The published pairs of fraction and layers: Gromov et al., Shortened LLaMA."""
    assert Deepest(frac=frac, keep_first=0, keep_last=1).layers(depth) == layers


def test_a_plan_that_keeps_too_little_is_refused():
    with pytest.raises(
        ValueError,
        match=r"keeps 0 of 30 layers; the last layer must stay. Lower prune.frac \(now 0.99; at most 0.98 here\)",
    ):
        Deepest(frac=0.99, keep_first=0, keep_last=1)(never, 30)
    assert len(Deepest(frac=0.98, keep_first=0, keep_last=1)(never, 30).drop) == 29
    with pytest.raises(ValueError, match="the first 4 and the last 2 layers must stay"):
        Deepest(frac=0.9, keep_first=4, keep_last=2)(never, 30)
