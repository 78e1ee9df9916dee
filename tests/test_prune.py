from itertools import combinations

import numpy as np
import pytest

from depthcut.plan import Plan
from depthcut.prune.block import Block
from depthcut.prune.blocks import Blocks
from depthcut.prune.deepest import Deepest
from depthcut.prune.every import Every
from depthcut.prune.greedy import Greedy
from depthcut.prune.lowest import Lowest
from depthcut.prune.plan import Given
from depthcut.prune.random import Random
from depthcut.scores import Scores


def scores(depth: int, values: dict[tuple[int, int], float]) -> Scores:
    """All blocks score 1, save those given as (start, stop)."""
    between = [[1.0 if i < j else 0.0 for j in range(depth + 1)] for i in range(depth + 1)]
    for (start, stop), value in values.items():
        between[start][stop] = value
    return Scores.of_blocks(between, [[0.0] * (depth + 1)] * (depth + 1), samples=1, left_out=0)


def never(*_):
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


def of_layers(*values: float) -> Scores:
    return Scores.of_layers(list(values), [0.0] * len(values))


def test_a_block_out_of_layer_scores_is_their_sum_and_says_so():
    plan = Block(frac=2 / 5, keep_first=0, keep_last=1)(lambda: of_layers(3, 1, 2, 5, 0), 5)
    assert plan.drop == (1, 2)
    assert plan.notes["score"] == 3 and plan.notes["score_is"] == "sum of the layers' scores"


def test_the_lowest_layers_go_wherever_they_are():
    table = of_layers(0.1, 5, 0.2, 4, 0.3, 0.0)
    assert Lowest(frac=0.5, keep_first=0, keep_last=0)(lambda: table, 6).drop == (0, 2, 5)
    assert Lowest(frac=0.5, keep_first=1, keep_last=1)(lambda: table, 6).drop == (2, 3, 4)
    assert Lowest(frac=0.0, keep_first=1, keep_last=1)(never, 6).drop == ()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [1, 2, 3])
def test_blocks_are_the_best_of_all_ways(seed, most):
    """Against every set of layers there is: its runs are its blocks, and only runs that are scored as blocks count."""
    depth, n = 9, 4
    values = np.triu(np.random.default_rng(seed).random((depth + 1, depth + 1)), 1)
    table = Scores.of_blocks(values.tolist(), np.zeros_like(values).tolist(), 1, 0)

    def price(layers: tuple[int, ...]) -> float:
        runs = Plan(depth, layers).to_dict()["drop"]
        return sum(table.block(a, b - a) for a, b in runs) if len(runs) <= most else float("inf")

    wanted = min(price(layers) for layers in combinations(range(1, depth - 1), n))
    plan = Blocks(frac=n / depth, keep_first=1, keep_last=1, blocks=most)(lambda: table, depth)
    assert plan.notes["score"] == pytest.approx(wanted) == pytest.approx(price(plan.drop))
    assert len(plan.drop) == n


def test_one_block_of_blocks_is_block():
    values = np.triu(np.random.default_rng(0).random((13, 13)), 1)
    table = Scores.of_blocks(values.tolist(), np.zeros_like(values).tolist(), 1, 0)
    one = Blocks(frac=0.4, keep_first=0, keep_last=1, blocks=1)(lambda: table, 12)
    assert one.drop == Block(frac=0.4, keep_first=0, keep_last=1)(lambda: table, 12).drop


def test_every_spreads_the_gaps_evenly():
    assert Every(frac=0.25, keep_first=0, keep_last=0)(never, 12).drop == (2, 6, 10)
    assert Every(frac=0.5, keep_first=1, keep_last=1)(never, 8).drop == (1, 3, 4, 6)
    assert Every(frac=0.0, keep_first=0, keep_last=1)(never, 8).drop == ()
    for depth in range(2, 40):
        plan = Every(frac=0.4, keep_first=0, keep_last=1)(never, depth)
        assert len(plan.drop) == Every(frac=0.4, keep_first=0, keep_last=1).layers(depth)


def test_random_layers_depend_on_the_seed_alone_and_are_fair():
    def draw(seed):
        return Random(frac=0.3, keep_first=1, keep_last=1, seed=seed)(never, 10).drop

    assert draw(0) == draw(0)
    drawn = [draw(seed) for seed in range(800)]
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert counts[0] == counts[9] == 0 and all(abs(count - 300) < 70 for count in counts[1:9])


def test_a_plan_out_of_a_file(tmp_path):
    path = tmp_path / "plan.json"
    Plan(8, (2, 5), model="abc").write(path)
    given = Given(path=str(path))
    assert given(never, 8) == Plan(8, (2, 5), model="abc")
    assert given.layers(8) == 2 and given.content() == (2, 5)
    with pytest.raises(ValueError, match="is a plan for 8 layers; this model has 9"):
        given.layers(9)
    with pytest.raises(ValueError, match="no plan at"):
        Given(path=str(tmp_path / "none.json")).content()


def test_greedy_scores_again_what_is_left():
    """Two layers that do the same: each is cheap while the other is there, and dear once it is gone."""
    alone = {0: 9.0, 1: 1.0, 2: 1.5, 3: 2.0, 4: 9.0}

    def score(removed=()):
        left = [layer for layer in range(5) if layer not in removed]
        return of_layers(*(8.0 if layer == 2 and 1 in removed else alone[layer] for layer in left))

    plan = Greedy(frac=0.4, keep_first=1, keep_last=1)(score, 5)
    assert plan.notes["order"] == [1, 3] and plan.notes["scores"] == [1.0, 2.0]
    assert Lowest(frac=0.4, keep_first=1, keep_last=1)(score, 5).drop == (1, 2)


def test_a_greedy_round_costs_no_round_twice():
    asked = []

    def score(removed=()):
        asked.append(removed)
        return of_layers(*[float(i) for i in range(6 - len(removed))])

    assert Greedy(frac=0.5, keep_first=0, keep_last=1)(score, 6).drop == (0, 1, 2)
    assert asked == [(), (0,), (0, 1)]
