import json
import re

import pytest

from depthcut.cut.plan import Plan
from depthcut.cut.spans import layer_spans
from depthcut.runtime.errors import UserError


def test_words_name_dropped_and_kept_layers():
    assert Plan(32, tuple(range(21, 29))).words == "drops layers 21-28 of 0-31, keeps 24"
    assert Plan(4, (2,)).words == "drops layer 2 of 0-3, keeps 3"
    assert Plan(6, (5, 0, 1)).words == "drops layers 0-1, 5 of 0-5, keeps 3"
    assert Plan(4, ()).words == "drops nothing, keeps all 4 layers"


def test_keep_is_what_is_not_dropped_in_order():
    plan = Plan(6, (4, 1, 2))
    assert plan.keep == (0, 3, 5)
    assert plan.fraction == 0.5


def test_spans_are_half_open():
    assert layer_spans([3, 4, 5, 9]) == [(3, 6), (9, 10)]
    assert layer_spans([]) == []


def test_written_plan_reads_back(tmp_path):
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
        ((1, 1), "contains a layer twice"),
    ],
)
def test_invalid_cut_is_refused(drop, says):
    with pytest.raises(ValueError, match=says):
        Plan(3, drop)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "depth": 3, "drop": []}', "\x00"])
def test_invalid_plan_file_fails_in_one_line(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="plan") as caught:
        Plan.read(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


def written(tmp_path, **changes):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"format": 2, "depth": 32, "drop": [[2, 5]]} | changes))
    return path


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ([[2, 5], [4, 6]], "spans [2, 5) and [4, 6) overlap"),
        ([[8, 9], [2, 5], [2, 5]], "spans [2, 5) and [2, 5) overlap"),
        ([[9, 12], [0, 20]], "spans [0, 20) and [9, 12) overlap"),
        ([[5, 3]], "span [5, 3) is reversed; the model has layers 0-31, and stop is exclusive"),
        ([[3, 3]], "span [3, 3) is empty; the model has layers 0-31"),
        ([[30, 33]], "span [30, 33) is out of range: the model has layers 0-31"),
        ([[0, 10**15]], "span [0, 1000000000000000) is out of range: the model has layers 0-31"),
        ([[-1, 2]], "span [-1, 2) is out of range"),
        ([[1.0, 2]], "span [1.0, 2] must be [start, stop) in whole numbers"),
        ([[True, 2]], "span [true, 2] must be [start, stop)"),
        ([["1", "2"]], 'span ["1", "2"] must be'),
        ([[1, 2, 3]], "span [1, 2, 3] must be"),
        ([32], "layer 32 is out of range: the model has layers 0-31"),
        (["9-40"], "span 9-40 is out of range"),
        (["9-4"], "span 9-4 is reversed"),
        (["nine"], 'span "nine" must be'),
        ([None], "span null must be"),
        ({"21": 22}, "drop must be a list of spans [start, stop), got {'21': 22}"),
        (21, "drop must be a list of spans [start, stop), got 21"),
        ([[0, 32]], "plan keeps 0 of 32 layers"),
    ],
)
def test_invalid_spans_are_refused(tmp_path, drop, says):
    path = written(tmp_path, drop=drop)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {says}")) as caught:
        Plan.read(path)
    assert "\n" not in str(caught.value)


def test_spans_may_touch_and_come_in_any_order(tmp_path):
    assert Plan.read(written(tmp_path, drop=[[9, 10], [4, 6], [2, 4]])).drop == (2, 3, 4, 5, 9)


@pytest.mark.parametrize("depth", ["32", 32.0, None, True, 0, -1, [32], 10**10, 10**18])
def test_invalid_depth_is_refused(tmp_path, depth):
    says = f"depth must be the model's number of layers, a whole number from 1 to 10000, got {depth!r}"
    with pytest.raises(ValueError, match=re.escape(says)):
        Plan.read(written(tmp_path, depth=depth))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unit": "half"}, "unit must be one of layer, attention, mlp, got 'half'"),
        ({"unit": ["mlp"]}, "unit must be one of layer, attention, mlp, got ['mlp']"),
        ({"model": 7}, "model must be a digest, or empty for any model of this depth, got 7"),
        ({"format": "2"}, "this plan has format '2'; this version reads format 2"),
    ],
)
def test_other_fields_of_wrong_type_are_refused(tmp_path, changes, says):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        Plan.read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_folder_is_no_plan(tmp_path):
    with pytest.raises(ValueError, match=r"is not a JSON plan \(a folder\)"):
        Plan.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"notes": ' + "[" * 100 + "]" * 100 + "}", "nested more than 64 levels deep"),
        ('{"notes": NaN}', "NaN is not a finite number"),
        ('{"notes": "\\ud800"}', "half a surrogate pair in a text"),
        ("[]", "expected an object, got list"),
    ],
)
def test_non_plan_file_is_named_in_one_line(tmp_path, text, says):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(f"plan.json is not a JSON plan ({says})")):
        Plan.read(tmp_path / "plan.json")


def test_sublayer_plan_keeps_all_layers_and_reads_back(tmp_path):
    plan = Plan(8, (2, 3, 6), "attention")
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    assert plan.keep == tuple(range(8)) and plan.fraction == 3 / 8
    assert plan.words == "drops the attention of layers 2-3, 6 of 0-7, keeps 5"
    assert Plan(8, (1,), "mlp").words == "drops the MLP of layer 1 of 0-7, keeps 7"


def test_plan_of_an_older_version_drops_whole_layers(tmp_path):
    assert Plan.read(written(tmp_path, format=1)) == Plan(32, (2, 3, 4))


@pytest.mark.parametrize("older", [{"format": 1}, {"format": 1, "unit": "layer"}, {}])
def test_plans_of_this_and_earlier_versions_are_readable(tmp_path, older):
    words, keys = Plan(32, (2, 3, 4)).to_dict(), ("depth", "drop", "words", "model", "notes")
    (tmp_path / "plan.json").write_text(json.dumps({key: words[key] for key in keys} | older))
    assert Plan.read(tmp_path / "plan.json").drop == (2, 3, 4)


def test_starts_that_rarely_win_are_not_named():
    wins = {"11": 0.996, "12": 0.004, "13": 0.0001}
    assert Plan(32, (11,), notes={"wins": wins}).surest == "11 in 100%"
    assert Plan(32, (11,), notes={"wins": {"11": 0.99, "12": 0.01}}).surest == "11 in 99%, 12 in 1%"
    assert Plan(32, (11,)).surest == ""


HANDMADE = [  # file content, and the dropped layers of 32
    ({"drop": [3, 4]}, (3, 4)),
    ({"drop": [[3, 5], 9, "11-13"]}, (3, 4, 9, 11, 12, 13)),
    ({"drop": ["7"], "unit": "mlp"}, (7,)),
    ({"drop": []}, ()),
]


@pytest.mark.parametrize(("content", "drop"), HANDMADE)
def test_handwritten_plan_needs_only_the_drop_list(tmp_path, content, drop):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    assert Plan.read(path, 32) == Plan(32, drop, content.get("unit", "layer"))
    with pytest.raises(ValueError, match='the key "depth", the model\'s number of layers, is missing'):
        Plan.read(path)


BROKEN = [
    ('{"depth": 8}', 'the key "drop" is missing. For example, {"drop": '),
    ('{"drop": [1], "dpeth": 8}', "dpeth: no such key. Did you mean depth? Available: depth, drop, format, "),
    ('{"drop": [1], "units": "mlp"}', "units: no such key. Did you mean unit?"),
    ('{"drop": [1], "' + "x" * 5000 + '": 1}', "(5,000 characters): no such key. Available: depth, drop"),
    ('{"drop": [1], "notes": {"score": 1e999}}', "is not a JSON plan (1e999 is beyond the range of numbers)"),
    ('{"drop": [1], "notes": []}', "notes must be a JSON object, got []"),
    ('{"drop": [1], "notes": {"wins": "11"}}', "notes.wins must map layers to shares, got '11'"),
    ('{"drop": [1], "notes": {"score": NaN}}', "is not a JSON plan (NaN is not a finite number)"),
    ('{"drop": [1], "depth": 1' + "0" * 5000 + "}", "is not a JSON plan (a number of thousands of digits)"),
    ("[" * 100_000, "is not a JSON plan"),
    ('{"drop": [1],}', "is not a JSON plan"),
]


@pytest.mark.parametrize(("text", "says"), BROKEN, ids=[says for _, says in BROKEN])
def test_broken_plan_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        Plan.read(path, 32)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
