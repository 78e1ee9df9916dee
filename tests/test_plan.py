import json

import pytest

from depthcut.plan import Plan, spans


def test_words_name_what_goes_and_what_stays():
    assert Plan(32, tuple(range(21, 29))).words == "drops layers 21-28 of 0-31, keeps 24"
    assert Plan(4, (2,)).words == "drops layer 2 of 0-3, keeps 3"
    assert Plan(6, (5, 0, 1)).words == "drops layers 0-1, 5 of 0-5, keeps 3"
    assert Plan(4, ()).words == "drops nothing, keeps all 4 layers"


def test_keep_is_what_is_not_dropped_in_order():
    plan = Plan(6, (4, 1, 2))
    assert plan.keep == (0, 3, 5)
    assert plan.fraction == 0.5


def test_spans_are_half_open():
    assert spans([3, 4, 5, 9]) == [(3, 6), (9, 10)]
    assert spans([]) == []


def test_written_and_read_back(tmp_path):
    plan = Plan(8, (2, 3, 6), model="abc", notes={"score": 0.25})
    plan.write(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["drop"] == [[2, 4], [6, 7]]
    assert Plan.read(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ((0, 1, 2), "keeps 0 of 3 layers"),
        ((3,), "drops layer 3, but this model has layers 0-2"),
        ((-1,), "drops layer -1"),
        ((1, 1), "names a layer twice"),
    ],
)
def test_an_impossible_cut_is_refused(drop, says):
    with pytest.raises(ValueError, match=says):
        Plan(3, drop)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "depth": 3, "drop": []}', "\x00"])
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="plan") as caught:
        Plan.read(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)
