"""Evolutionary search on tables small enough to measure every cut."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from depthcut.config import methods
from depthcut.cut.scores import Scores
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune.evolution import CandidateScores, Evolution, mutate_candidate
from depthcut.prune.lowest import Lowest

SIZE: dict[str, Any] = {
    "frac": 0.5,
    "layers": 5,
    "parameters": None,
    "weight_bytes": None,
    "cache_bytes": None,
    "unit": "layer",
    "keep_first": 1,
    "keep_last": 1,
}
KNOBS: dict[str, Any] = {
    **SIZE,
    "generations": 30,
    "offspring": 12,
    "survivors": [3, 1],
    "samples": [2, 16],
    "seed": 0,
}
DEPTH = 13


class Table:
    """The loss without some layers: the sum of their losses, and a term for each pair that is dropped together.

    On fewer than 16 sequences each cut has noise, the same at every reading.
    """

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.alone = random.random(DEPTH)
        self.pairs = random.random((DEPTH, DEPTH)) * (random.random((DEPTH, DEPTH)) < 0.5)
        self.asked: list[tuple[tuple[int, ...], int | None]] = []

    def price(self, cut: tuple[int, ...]) -> float:
        return float(self.alone[list(cut)].sum() + sum(self.pairs[i, j] for i, j in combinations(cut, 2)))

    def __call__(self, removed: tuple[int, ...] = ()) -> Scores:
        raise AssertionError(f"all calibration text is read, without {removed}")

    def start(self, free: range, samples: int, n: int = 5) -> tuple[int, ...]:
        """Return the units with the lowest loss of their own."""
        values = dict(zip(free, self.without([(layer,) for layer in free], samples), strict=True))
        return tuple(sorted(sorted(free, key=lambda layer: values[layer])[:n]))

    def without(self, drops: Any, samples: int | None = None) -> list[float]:
        self.asked += [(cut, samples) for cut in drops]
        noise = [np.random.default_rng(cut).normal() * (0.3 if samples != 16 else 0) for cut in drops]
        return [self.price(cut) + float(each) for cut, each in zip(drops, noise, strict=True)]

    def best(self, free: range, n: int) -> tuple[int, ...]:
        return min(combinations(free, n), key=self.price)


def evolved(table: Any, **knobs: Any) -> Any:
    return Evolution(**KNOBS | knobs)(table, ModelSize(DEPTH))


@pytest.mark.parametrize("seed", range(6))
def test_finds_the_best_of_all_cuts(seed: int) -> None:
    """Out of 462, where one shot and the sum of the layers' own prices mislead."""
    table = Table(seed)
    best = table.best(range(1, DEPTH - 1), 5)
    assert table.start(range(1, DEPTH - 1), 16) != best
    table.asked.clear()
    plan = evolved(table)
    assert plan.drop == best
    assert plan.notes["value"] == pytest.approx(table.price(best)) and plan.notes["improved"]
    assert len({cut for cut, samples in table.asked if samples == 16}) < 100


def test_other_selection_steps_find_the_best_too() -> None:
    table = Table(0)
    best = table.best(range(1, DEPTH - 1), 5)
    assert evolved(table, survivors=[1], samples=[16]).drop == best
    assert evolved(table, survivors=[6, 2, 1], samples=[1, 4, 16]).drop == best


def test_result_depends_on_the_seed() -> None:
    plans = [evolved(Table(3), seed=seed, generations=3) for seed in (0, 0, 1, 2)]
    assert plans[0] == plans[1]
    assert len({tuple(plan.notes["history"]) for plan in plans}) > 1


@pytest.mark.parametrize("seed", range(10))
def test_value_never_worsens_over_generations(seed: int) -> None:
    table = Table(seed)
    plan = evolved(table, generations=4, offspring=3, survivors=[1, 1])
    history = plan.notes["history"]
    assert history[0] == pytest.approx(table.price(table.start(range(1, DEPTH - 1), 2)))
    assert all(after <= before for before, after in pairwise(history))
    assert plan.notes["value"] == history[-1] == pytest.approx(table.price(plan.drop))
    assert plan.notes["improved"] == (history[-1] < history[0])
    assert plan.notes["generations"] == len(history) - 1 == 4


@pytest.mark.parametrize("knobs", [{}, {"survivors": [1], "samples": [16]}, {"offspring": 40, "survivors": [8, 1]}])
def test_no_cut_is_measured_twice_at_one_size(knobs: dict[str, Any]) -> None:
    table = Table(1)
    plan = evolved(table, **knobs)
    samples = (KNOBS | knobs)["samples"]
    assert [each for each in table.asked if len(each[0]) == 1] == [((layer,), samples[0]) for layer in range(1, 12)]
    assert len(table.asked) == len(set(table.asked)) == plan.notes["evaluations"] + 11
    assert {each for _, each in table.asked} == set(samples)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 1), (0, 6), (4, 4)])
def test_first_and_last_layers_stay(first: int, last: int) -> None:
    table = Table(2)
    plan = evolved(table, keep_first=first, keep_last=last)
    free = range(first, DEPTH - last)
    asked = [cut for cut, _ in table.asked]
    assert all(len(cut) in (1, 5) and set(cut) <= set(free) and list(cut) == sorted(set(cut)) for cut in asked)
    assert plan.drop == table.best(free, 5)


def test_stops_when_no_cut_is_left() -> None:
    """Six layers that may go, five that must: six cuts. Where all must, one."""
    table = Table(4)
    plan = evolved(table, keep_first=4, keep_last=3, generations=500)
    assert plan.drop == table.best(range(4, 10), 5)
    assert plan.notes["generations"] < 6 and len([each for each in table.asked if each[1] == 16]) == 6
    only = evolved(table, keep_first=4, keep_last=4)
    assert (only.drop, only.notes["generations"], only.notes["improved"]) == ((4, 5, 6, 7, 8), 0, False)
    assert only.notes["history"] == [only.notes["value"]]


def test_dropping_nothing_measures_nothing() -> None:
    table = Table(0)
    assert evolved(table, layers=0).drop == () and table.asked == []


def test_child_swaps_one_to_three_layers() -> None:
    """The lower of two draws of 1, 2, 3: 5, 3 and 1 times in 9; and every dropped and kept layer is as likely."""
    from random import Random

    random, parent, free = Random(0), (2, 3, 7, 8), range(1, 12)
    children = [mutate_candidate(parent, free, random) for _ in range(9000)]
    swaps = np.bincount([len(set(parent) - set(child)) for child in children], minlength=4)
    assert swaps[0] == 0 and np.allclose(swaps[1:] / 1000, [5, 3, 1], atol=0.2)
    returned = np.bincount([layer for child in children for layer in parent if layer not in child], minlength=12)
    gone = np.bincount([layer for child in children for layer in child if layer not in parent], minlength=12)
    assert np.ptp(returned[[2, 3, 7, 8]]) < 400 and np.ptp(gone[[1, 4, 5, 6, 9, 10, 11]]) < 300
    assert returned.sum() == gone.sum()


def test_children_are_exhaustive_in_small_neighbourhoods() -> None:
    """Of 4 of 7 layers: 12 + 18 + 4 cuts are one, two and three swaps away."""
    from random import Random

    search = Evolution(**KNOBS | {"offspring": 100})
    found, parent = CandidateScores(Table(0)), (1, 2, 3, 4)
    children = search.children(parent, range(1, 8), found, Random(0))
    wanted = {cut for cut in combinations(range(1, 8), 4) if cut != parent}
    assert len(children) == len(wanted) == 34 and set(children) == wanted
    found.ranked([*children[:30]], 16)
    found.ranked([*children[30:]], 2)
    assert set(search.children(parent, range(1, 8), found, Random(0))) == set(children[30:])


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"samples": [2]}, r"one entry for each selection step, got \[2, 1\] and \[2\]"),
        ({"samples": [16, 16]}, r"prune.samples must increase from step to step, got \[16, 16\]"),
        ({"samples": [0, 16]}, r"prune.samples must increase"),
        ({"survivors": [2, 2]}, r"from at most prune.offspring=12 to 1, got \[2, 2\]"),
        ({"survivors": [13, 1]}, r"from at most prune.offspring=12 to 1, got \[13, 1\]"),
        ({"survivors": [0, 1]}, r"got \[0, 1\]"),
        ({"survivors": [], "samples": []}, r"prune.survivors must be decreasing numbers"),
        ({"survivors": 1}, r"prune.survivors must be a list, got 1"),
        ({"generations": 0}, r"prune.generations must be above 0, got 0"),
        ({"parameters": 1e6}, r"prune.layers and prune.parameters are both set"),
    ],
)
def test_invalid_selection_steps_fail_in_one_line(knobs: dict[str, Any], says: str) -> None:
    target = {"_target_": "depthcut.prune.evolution.Evolution"}
    with pytest.raises(ValueError, match=says) as caught:
        methods.build_method("prune", target | KNOBS | {"survivors": [2, 1]} | knobs)
    assert "\n" not in str(caught.value)


def test_needs_a_metric_that_searches() -> None:
    assert Evolution.searches and Evolution.rescores and Evolution.reads_scores
    assert not Lowest.searches
