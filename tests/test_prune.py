import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from builders import KNOBS, sized
from composing import ROOT
from depthcut.config import methods
from depthcut.cut.plan import Plan
from depthcut.cut.scores import Scores
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune.block import Block
from depthcut.prune.blocks import Blocks
from depthcut.prune.deepest import Deepest
from depthcut.prune.every import Every
from depthcut.prune.evolution import Evolution
from depthcut.prune.greedy import Greedy
from depthcut.prune.lowest import Lowest
from depthcut.prune.plan import Given
from depthcut.prune.random import Random
from depthcut.study import digests
from pico import pico


def scores(depth: int, values: dict[tuple[int, int], float]) -> Scores:
    """Score all blocks 1, except those given as (start, stop)."""
    between = [[1.0 if i < j else 0.0 for j in range(depth + 1)] for i in range(depth + 1)]
    for (start, stop), value in values.items():
        between[start][stop] = value
    return Scores.of_blocks(between, [[0.0] * (depth + 1)] * (depth + 1), samples=1, left_out=0)


def never(*_):
    raise AssertionError("the metric was asked")


def test_block_takes_the_lowest_score_of_its_size():
    """Two public tools answer for n + 1 when they are asked for n: the lowest block of another size must not win."""
    table = scores(8, {(2, 5): 0.1, (4, 6): 0.2, (1, 5): 0.01, (3, 4): 0.001})
    assert sized(Block, frac=3 / 8)(lambda: table, ModelSize(8)).drop == (2, 3, 4)
    assert sized(Block, frac=2 / 8)(lambda: table, ModelSize(8)).drop == (4, 5)
    assert sized(Block, frac=4 / 8)(lambda: table, ModelSize(8)).drop == (1, 2, 3, 4)


def test_first_and_last_layers_stay():
    table = scores(6, {(0, 2): 0.1, (4, 6): 0.1, (3, 5): 0.5})
    assert sized(Block, frac=2 / 6, keep_first=1, keep_last=1)(lambda: table, ModelSize(6)).drop == (3, 4)
    assert sized(Block, frac=2 / 6, keep_first=0, keep_last=0)(lambda: table, ModelSize(6)).drop == (0, 1)


def test_deepest_drops_the_block_before_the_last_layer():
    """Gromov et al.: 0-based, drop [L-1-n, L-2], keep L-1."""
    assert sized(Deepest, frac=0.25)(never, ModelSize(32)).drop == tuple(range(23, 31))
    assert sized(Deepest, frac=0.5, keep_first=0, keep_last=4)(never, ModelSize(8)).drop == (0, 1, 2, 3)


@pytest.mark.parametrize("prune", [Block, Deepest])
def test_nothing_to_drop_asks_no_metric(prune):
    assert sized(prune, frac=0.0)(never, ModelSize(30)).drop == ()


@pytest.mark.parametrize(
    ("frac", "depth", "layers"),
    [(0.27, 30, 8), (0.2, 32, 6), (0.27, 32, 9), (0.35, 32, 11), (0.5, 80, 40), (0.29, 40, 12)],
)
def test_frac_is_rounded_to_the_nearest_layer(frac, depth, layers):
    """The published pairs of fraction and layers: Gromov et al., Shortened LLaMA."""
    assert sized(Deepest, frac=frac).count(ModelSize(depth)) == layers


def test_plan_that_keeps_too_little_is_refused():
    with pytest.raises(
        ValueError,
        match=r"keeps 0 of 30 layers; the last layer must stay. Lower prune.frac \(now 0.99; at most 0.98 here\)",
    ):
        sized(Deepest, frac=0.99)(never, ModelSize(30))
    assert len(sized(Deepest, frac=0.98)(never, ModelSize(30)).drop) == 29
    with pytest.raises(ValueError, match="the first 4 and the last 2 layers must stay"):
        sized(Deepest, frac=0.9, keep_first=4, keep_last=2)(never, ModelSize(30))


def of_layers(*values: float) -> Scores:
    return Scores.of_layers(list(values), [0.0] * len(values))


def test_block_from_layer_scores_is_their_sum():
    plan = sized(Block, frac=2 / 5)(lambda: of_layers(3, 1, 2, 5, 0), ModelSize(5))
    assert plan.drop == (1, 2)
    assert plan.notes["score"] == 3 and plan.notes["score_is"] == "sum of the layers' scores"


def test_lowest_layers_go_wherever_they_are():
    table = of_layers(0.1, 5, 0.2, 4, 0.3, 0.0)
    assert sized(Lowest, frac=0.5, keep_first=0, keep_last=0)(lambda: table, ModelSize(6)).drop == (0, 2, 5)
    assert sized(Lowest, frac=0.5, keep_first=1, keep_last=1)(lambda: table, ModelSize(6)).drop == (2, 3, 4)
    assert sized(Lowest, frac=0.0, keep_first=1, keep_last=1)(never, ModelSize(6)).drop == ()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [1, 2, 3])
def test_blocks_equal_exhaustive_search(seed, most):
    """Against every set of layers: its runs are its blocks, and only runs that are scored as blocks count."""
    depth, n = 9, 4
    values = np.triu(np.random.default_rng(seed).random((depth + 1, depth + 1)), 1)
    table = Scores.of_blocks(values.tolist(), np.zeros_like(values).tolist(), 1, 0)

    def price(layers: tuple[int, ...]) -> float:
        runs = Plan(depth, layers).to_dict()["drop"]
        return sum(table.block(a, b - a) for a, b in runs) if len(runs) <= most else float("inf")

    wanted = min(price(layers) for layers in combinations(range(1, depth - 1), n))
    plan = sized(Blocks, frac=n / depth, keep_first=1, keep_last=1, blocks=most)(lambda: table, ModelSize(depth))
    assert plan.notes["score"] == pytest.approx(wanted) == pytest.approx(price(plan.drop))
    assert len(plan.drop) == n


def test_single_block_of_blocks_equals_block():
    values = np.triu(np.random.default_rng(0).random((13, 13)), 1)
    table = Scores.of_blocks(values.tolist(), np.zeros_like(values).tolist(), 1, 0)
    one = sized(Blocks, frac=0.4, blocks=1)(lambda: table, ModelSize(12))
    assert one.drop == sized(Block, frac=0.4)(lambda: table, ModelSize(12)).drop


def test_every_spreads_the_gaps_evenly():
    assert sized(Every, frac=0.25, keep_first=0, keep_last=0)(never, ModelSize(12)).drop == (2, 6, 10)
    assert sized(Every, frac=0.5, keep_first=1, keep_last=1)(never, ModelSize(8)).drop == (1, 3, 4, 6)
    assert sized(Every, frac=0.0)(never, ModelSize(8)).drop == ()
    for depth in range(2, 40):
        plan = sized(Every, frac=0.4)(never, ModelSize(depth))
        assert len(plan.drop) == sized(Every, frac=0.4).count(ModelSize(depth))


def test_random_layers_are_uniform_and_seeded():
    def draw(seed):
        return sized(Random, frac=0.3, keep_first=1, keep_last=1, seed=seed)(never, ModelSize(10)).drop

    assert draw(0) == draw(0)
    drawn = [draw(seed) for seed in range(800)]
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert counts[0] == counts[9] == 0 and all(abs(count - 300) < 70 for count in counts[1:9])


def test_plan_from_a_file(tmp_path):
    path = tmp_path / "plan.json"
    Plan(8, (2, 5), model="abc").write(path)
    given = Given(path=str(path), drop=None)
    assert given(never, ModelSize(8)) == Plan(8, (2, 5), model="abc")
    assert given.count(ModelSize(8)) == 2 and given.content() == {"unit": "layer", "drop": (2, 5)}
    with pytest.raises(ValueError, match="is a plan for 8 layers; this model has 9"):
        given.count(ModelSize(9))
    with pytest.raises(ValueError, match="no plan at"):
        Given(path=str(tmp_path / "none.json"), drop=None).content()


def test_greedy_rescores_the_remaining_layers():
    """Two layers that do the same: each is cheap while the other is there, and expensive once it is gone."""
    alone = {0: 9.0, 1: 1.0, 2: 1.5, 3: 2.0, 4: 9.0}

    def score(removed=()):
        left = [layer for layer in range(5) if layer not in removed]
        return of_layers(*(8.0 if layer == 2 and 1 in removed else alone[layer] for layer in left))

    plan = sized(Greedy, frac=0.4, keep_first=1, keep_last=1)(score, ModelSize(5))
    assert plan.notes["order"] == [1, 3] and plan.notes["scores"] == [1.0, 2.0]
    assert sized(Lowest, frac=0.4, keep_first=1, keep_last=1)(score, ModelSize(5)).drop == (1, 2)


def test_greedy_repeats_no_round():
    asked = []

    def score(removed=()):
        asked.append(removed)
        return of_layers(*[float(i) for i in range(6 - len(removed))])

    assert sized(Greedy, frac=0.5)(score, ModelSize(6)).drop == (0, 1, 2)
    assert asked == [(), (0,), (0, 1)]


def weighing(*units: int, outside: int = 0, quantity: Any = "parameters") -> ModelSize:
    """Return a model size with these weights per unit, and outside the units."""
    return ModelSize(len(units), **{quantity: units}, total={quantity: sum(units) + outside})


def test_layers_override_the_fraction():
    assert sized(Deepest, frac=0.9, layers=2)(never, ModelSize(8)).drop == (5, 6)
    assert sized(Deepest, layers=0)(never, ModelSize(8)).drop == ()
    with pytest.raises(ValueError, match=r"keeps 0 of 8 layers; .* must stay. Lower prune.layers \(now 20; at most 7"):
        sized(Deepest, layers=20).count(ModelSize(8))


@pytest.mark.parametrize("quantity", ["parameters", "weight_bytes", "cache_bytes"])
@pytest.mark.parametrize("seed", range(8))
def test_budget_is_met_by_any_minimal_cut(seed, quantity):
    """Against every set of layers that may go: each cut of this size fits, not each cut of a smaller size."""
    random = np.random.default_rng(seed)
    units = random.integers(1, 20, 8).tolist()
    shape = weighing(*units, outside=7, quantity=quantity)
    free = range(1, 7)
    for budget in range(7 + sum(units) - sum(units[1:7]), 7 + sum(units) + 3):

        def left(cut):
            return 7 + sum(units) - sum(units[layer] for layer in cut)

        prune = sized(Deepest, keep_first=1, keep_last=1, **{quantity: float(budget)})
        wanted = next(n for n in range(7) if all(left(cut) <= budget for cut in combinations(free, n)))
        assert prune.needs_weights and prune.count(shape) == wanted
        assert left(prune(never, shape).drop) <= budget


def test_budget_already_met_drops_nothing():
    assert sized(Deepest, parameters=100.0)(never, weighing(*[10] * 8, outside=20)).drop == ()
    assert sized(Deepest, parameters=99.0)(never, weighing(*[10] * 8, outside=20)).drop == (6,)


def test_unreachable_budget_reports_the_minimum():
    shape = weighing(10, 20, 10, 30, outside=5)
    says = (
        r"^prune.parameters=12 cannot be met: 75 in total, 45 without 2 of 4 layers; "
        r"the first and the last layer must stay. "
        r"Set at least 45, or lower prune.keep_first or prune.keep_last$"
    )
    with pytest.raises(ValueError, match=says):
        sized(Lowest, parameters=12.0, keep_first=1).count(shape)
    with pytest.raises(ValueError, match=r"=12 .* 35 without 3 of 4 layers; at least one must stay. Set at least 35$"):
        sized(Lowest, parameters=12.0, keep_last=0).count(shape)
    assert sized(Lowest, parameters=45.0, keep_first=1).count(shape) == 2
    with pytest.raises(ValueError, match="8 in total, 8 without 3 of 4 MLPs"):
        mlps = ModelSize(4, cache_bytes=(0, 0, 0, 0), total={"cache_bytes": 8})
        sized(Lowest, cache_bytes=7.0, unit="mlp").count(mlps)


def test_budget_counts_the_real_pruned_model():
    shape = ModelSize.from_config(pico("llama", layers=8).config, "layer", "none", "float32")
    for n in range(8):
        left = pico("llama", layers=8 - n).num_parameters()
        assert sized(Deepest, parameters=float(left)).count(shape) == n
        assert sized(Deepest, weight_bytes=4.0 * left).count(shape) == n
        assert n == 7 or sized(Deepest, parameters=left - 0.5).count(shape) == n + 1


def test_only_budgets_need_weights(tmp_path):
    assert not any(sized(Block, **each).needs_weights for each in ({}, {"layers": 3}))
    assert all(sized(Block, **{each: 1e9}).needs_weights for each in ("parameters", "weight_bytes", "cache_bytes"))
    assert not Given(path=str(tmp_path), drop=None).needs_weights


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"layers": 3, "parameters": 1e9}, "prune.layers and prune.parameters are both set; set only one"),
        ({"cache_bytes": 9, "weight_bytes": 1e9}, "prune.weight_bytes and prune.cache_bytes are both set"),
        ({"layers": -1}, "prune.layers must be at least 0, got -1"),
        ({"layers": 2.5}, "prune.layers must be a whole number of at least 0, got 2.5"),
        ({"parameters": 0}, "prune.parameters must be above 0, got 0"),
        ({"parameters": "1B"}, "prune.parameters must be a number above 0, got '1B'"),
        ({"unit": "head"}, "prune.unit must be one of layer, attention or mlp, got 'head'"),
    ],
)
def test_invalid_size_is_refused_in_one_line(knobs, says):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        methods.build_method("prune", {"_target_": "depthcut.prune.block.Block", **KNOBS, **knobs})


MORE: dict[Any, dict[str, Any]] = {
    Block: {},
    Blocks: {"blocks": 2},
    Deepest: {},
    Every: {},
    Greedy: {},
    Lowest: {},
    Random: {"seed": 0},
    Evolution: {"generations": 2, "offspring": 3, "survivors": [1], "samples": [4], "seed": 0},
}


class Priced:
    """Units with fixed scores that do not depend on what is removed."""

    def __init__(self, *prices: float) -> None:
        self.prices = prices

    def __call__(self, removed: tuple[int, ...] = ()) -> Scores:
        return of_layers(*[price for unit, price in enumerate(self.prices) if unit not in removed])

    def without(self, drops: Any, samples: int | None = None) -> list[float]:
        del samples
        return [sum(self.prices[unit] for unit in drop) for drop in drops]


@pytest.mark.parametrize("unit", ["layer", "attention", "mlp"])
@pytest.mark.parametrize("prune", MORE)
def test_every_pruner_describes_its_drop(prune, unit, tmp_path):
    chosen = sized(prune, unit=unit, layers=2, **MORE[prune])
    plan = chosen(Priced(5, 1, 4, 2, 3, 6), ModelSize(6))
    assert (chosen.unit, plan.unit, plan.depth, len(plan.drop)) == (unit, unit, 6, 2)
    nothing = sized(prune, unit=unit, layers=0, **MORE[prune])(never, ModelSize(6))
    assert (nothing.unit, nothing.drop) == (unit, ())
    assert prune not in (Lowest, Greedy, Evolution) or plan.drop == (1, 3)
    plan.write(tmp_path / "plan.json")
    given = Given(path=str(tmp_path / "plan.json"), drop=None)
    assert (given.unit, given(never, ModelSize(6)), given.count(ModelSize(6))) == (unit, plan, 2)
    assert given.content() == {"unit": unit, "drop": plan.drop}


def test_every_pruner_is_in_these_tests():
    files = {path.stem for path in (ROOT / "src/depthcut/prune").glob("*.py")} - {"__init__", "plan"}
    assert files == {prune.__module__.rpartition(".")[2] for prune in MORE}


def test_sublayer_block_is_adjacent_with_summed_scores():
    plan = sized(Block, unit="attention", layers=2)(Priced(5, 1, 4, 2, 3, 6), ModelSize(6))
    assert plan.drop == (1, 2) or plan.drop == (3, 4)
    assert plan.notes["score"] == 5 and plan.notes["score_is"] == "sum of the attentions' scores"
    assert plan.words == "drops the attention of layers 1-2 of 0-5, keeps 4"


def test_digest_ignores_how_the_size_was_given():
    same = [sized(Block, frac=0.5), sized(Block, layers=3), sized(Block, frac=0.1, parameters=1e9)]
    assert len({str(digests.method_fields(each)) for each in same}) == 1
    assert digests.method_fields(same[0]) != digests.method_fields(sized(Block, frac=0.5, unit="mlp"))
    assert digests.method_fields(same[0]) != digests.method_fields(sized(Block, frac=0.5, keep_first=1))
