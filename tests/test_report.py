"""The report's tables: a study's points, its numbers, and the transitions of its curves."""

import csv
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

import studies
from depthcut.report import (
    cells,
    chance,
    curves,
    healing,
    labels,
    layers,
    live,
    score_maps,
    serve,
    study,
    table,
    tidy,
    transition_fit,
    transitions,
)
from depthcut.report.transition_data import CurveData, Interval, Transition
from depthcut.runtime.errors import UserError
from depthcut.study.recording import FORMAT
from running import ENVIRONMENT, ROOT
from versions import strict_python


@pytest.fixture(scope="module")
def bench():
    return studies.bench("transition")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("made")
    studies.bench("report").make(outputs, 280, steps=120, models=("llama2_7b", "phi_2"))
    return outputs


@pytest.fixture
def made(made_once, tmp_path):
    """Write synthetic studies of 280 points, to be damaged."""
    shutil.copytree(made_once, tmp_path / "outputs")
    return tmp_path / "outputs"


def report(*arguments) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, *strict_python(), "-m", "depthcut.report", *map(str, arguments)]
    return subprocess.run(call, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def first(outputs, name="made_llama2_7b"):
    return sorted(outputs.glob(f"{name}/*/record.json"))


# How far a study is.


def test_states_list_failure_reasons_and_running_steps(made):
    done, failed, running, left, *_ = (path.parent for path in first(made))
    for folder in (failed, running, left):
        (folder / "record.json").unlink()
    reason = "RuntimeError: [red]CUDA[/red] out of memory"
    (failed / "failure.json").write_text(json.dumps({"format": 1, "reason": reason, "traceback": "", "when": ""}))
    (running / "heal.csv").write_text("step,tokens,seconds,loss\n1,2,3,4\n7,8,9,1\n")
    (running / "config.yaml").write_text(json.dumps({"heal": {"_target_": "depthcut.heal.lora.Lora", "steps": 9}}))
    with FileLock(running.with_name(f".{running.name}.lock")):
        shown = report(made / "made_llama2_7b")
    assert shown.returncode == 0, shown.stderr
    total = len(list((made / "made_llama2_7b").iterdir())) - 2  # the lock and the table
    assert f"{total} points: {total - 3} done, 1 failed, 1 running, 1 left" in shown.stdout
    assert reason in shown.stdout and failed.name[:8] in shown.stdout
    assert "healing: step 7 of 9" in shown.stdout
    assert done.name not in shown.stdout


def test_refresh_rereads_only_unfinished_points(made):
    done, begun, damaged, later, *_ = (path.parent for path in first(made))
    (begun / "record.json").unlink()
    (damaged / "record.json").write_text("{")
    kept = (later / "record.json").read_text()
    (later / "record.json").unlink()
    found = study.read_studies([made])
    assert set(found.unfinished) == {begun, damaged, later} and found.states["left"] == 3
    (done / "record.json").unlink()  # is not read again
    (later / "record.json").write_text(kept)
    with FileLock(begun.with_name(f".{begun.name}.lock")):
        now = study.refresh_studies(found)
    assert now.states == {"done": 278, "running": 1, "left": 1} and now.running == [begun]
    assert now.skipped == found.skipped == {study.UNREADABLE: 1}
    assert found.states["left"] == 3 and found.running == []


def test_running_point_shows_progress_and_thinned_curve(made):
    folder = next(path.parent for path in first(made) if (path.parent / "heal.csv").exists())
    (told,) = live.running_points([folder])
    assert told["digest"] == folder.name and told["study"] == "made_llama2_7b" and told["steps"] == (120, 5000)
    assert len(told["loss"]) == len(told["tokens"]) <= healing.MAX_POINTS and told["tokens"][-1] == 120 * 32768
    assert told["each"] * len(told["loss"]) >= 120
    (folder / "heal.csv").write_text("step,tok")
    (folder / "config.yaml").write_text("heal: {steps: 2026-01-01}\nmodel: 3")
    (told,) = live.running_points([folder])
    assert told["steps"] is None and told["loss"] == [] and json.dumps(told)


def test_many_healing_curves_are_thinned_more(made):
    points = study.read_studies([made]).points
    healed = next(point for point in points if (point.folder / "heal.csv").exists())
    other = next(point for point in points if not (point.folder / "heal.csv").exists())
    (alone,), (among,) = (healing.healing_curves([healed, *[other] * more]) for more in (0, 3000))
    assert len(alone.loss) == 40 and len(among.loss) == 20  # of 120 steps
    assert np.average(among.loss) == pytest.approx(np.average(alone.loss))
    assert alone.tokens[-1] == among.tokens[-1] == 120 * 32768


def test_title_names_only_common_settings(made):
    record = json.loads(first(made)[0].read_text())
    other = json.loads(json.dumps(record))
    other["config"]["prune"]["_target_"] = "depthcut.prune.deepest.Deepest"
    one, two = (str(table.study_table(rows).title) for rows in ([record, record], [record, other]))
    metric = "metric " + record["config"]["metric"]["_target_"].split(".")[-2]
    assert metric in one and "metric" not in two and "model llama2_7b" in two
    heads = [column.header for column in table.study_table([record, other]).columns]
    assert "metric" in heads and "prune" in heads and "model" not in heads


def test_study_without_finished_records_is_shown(made):
    points = [path.parent for path in first(made)]
    for folder in points:
        (folder / "record.json").unlink()
    shown = report(made / "made_llama2_7b")
    assert (
        shown.returncode == 0
        and f"{len(points)} points: 0 done, 0 failed, 0 running, {len(points)} left" in shown.stdout
    )


def test_unusable_entries_are_counted_without_an_error(made):
    a, b, c, d, e, f, *rest = first(made)
    studies.changed(a, format=FORMAT + 1)
    b.write_text(b.read_text()[:500])
    studies.changed(c, plan={"depth": 3})
    d.write_text(d.read_text().replace('"dense/boolq/acc"', '"dense/boolq/acc": NaN, "x/y"'))
    e.unlink()
    e.mkdir()
    f.write_text("[" * 100_000)
    (made / "made_llama2_7b" / "wandb").mkdir()
    (made / "made_llama2_7b" / "notes.txt").write_text("mine")
    shutil.copytree(rest[0].parent, made / "made_phi_2" / rest[0].parent.name)
    found = study.read_studies([made])
    assert found.skipped == {
        study.OTHER_VERSION: 1,
        study.UNREADABLE: 5,
        study.FOREIGN: 1,
        study.DUPLICATE: 1,
    }
    assert len(found.points) == 280 - 6
    assert set(found.damaged) == {each.parent for each in (b, c, d, e, f)}
    assert found.damaged[e.parent] == "a folder" and found.damaged[f.parent] == "nested too deeply"
    assert "1 folder of another version, 5 folders unreadable, 1 folder without points" in found.words
    assert report(made).returncode == 0


def test_absurd_models_and_lone_surrogates_are_skipped(made):
    a, b, c, d, e, *_ = first(made)
    plan = json.loads(a.read_text())["plan"]
    studies.changed(a, plan={**plan, "depth": 10**9, "drop": [[0, 10**8]]})
    studies.changed(b, plan={**plan, "depth": 10**18})
    studies.changed(c, study="half \ud800")
    studies.changed(d, digest="0" * 16)
    for scores in (made / "cache/scores").glob("*/scores.json"):
        scores.write_text(json.dumps({**json.loads(scores.read_text()), "depth": 10**9}))
    odd = e.parent.with_name("odd\udcff")
    e.parent.rename(odd)
    done = report(made, "-o", made / "r.html")
    assert done.returncode == 0, done.stderr
    assert "odd\\udcff" in (made / "r.html").read_text()
    shown = report(made / "made_llama2_7b").stdout
    assert "skipped: 4 folders unreadable" in shown and "half a surrogate pair" in shown
    assert "the record of point 0000000000000000" in shown


@pytest.mark.parametrize("output", ["r.html", "r.csv"])
def test_malformed_evaluations_spoil_no_report(made, output):
    a, b, c, d, *_ = first(made)
    studies.changed(a, measured={"dense": {"x": [1]}})
    studies.changed(b, measured={"dense": {"x": {"part": 1, "settings": {}, "sample": {}, "numbers": {}}}})
    studies.changed(c, measured={"dense": {"x": {"part": "loss", "settings": {}, "sample": {}, "numbers": None}}})
    studies.changed(d, measured=[1])
    done = report(made / "made_llama2_7b", "-o", made / output)
    assert done.returncode == 0, done.stderr
    assert (made / output).exists()
    found = study.read_studies([made])
    assert set(found.damaged) == {each.parent for each in (a, b, c, d)}


@pytest.mark.parametrize("port", [99999999, 65536, -1])
def test_invalid_port_is_refused_in_one_line(tmp_path, port):
    with pytest.raises(UserError, match=f"--port must be a whole number from 0 to 65535, got {port}"):
        serve.make_server([tmp_path], port)


def test_later_record_of_a_point_wins(made):
    path = first(made)[0]
    shutil.copytree(path.parent, made / "made_phi_2" / path.parent.name)
    studies.changed(made / "made_phi_2" / path.parent.name / "record.json", finished="2027-01-01T00:00:00+00:00")
    found = {point.record["digest"]: point for point in study.read_studies([made]).points}
    assert found[path.parent.name].folder.parent.name == "made_phi_2"


def test_terminal_report_imports_nothing_heavy(made):
    code = (
        "import sys; sys.argv = ['report', sys.argv[1]]; from depthcut.report.__main__ import main; main(sys.argv[1:]);"
        "print({'torch', 'plotly', 'pandas', 'scipy', 'matplotlib', 'transformers'} & set(sys.modules))"
    )
    call = [sys.executable, "-c", code, str(made / "made_phi_2")]
    shown = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.splitlines()[-1] == "set()"


def test_missing_or_empty_study_fails_in_one_line(tmp_path):
    missing = report(tmp_path / "none")
    assert missing.returncode == 2 and missing.stderr.startswith("error: no study at ")
    empty = report(tmp_path)
    assert empty.returncode == 2 and "no points found" in empty.stderr and empty.stderr.count("\n") == 1


def test_csv_table_has_all_numbers_and_no_formulas(made):
    record = json.loads(first(made)[0].read_text())
    record["config"]["model"]["repo"] = "=HYPERLINK(evil)"
    record |= {"=HYPERLINK(1)/x": 1.0, "@SUM(1)/y": 2.0}
    table.write_study_csv([record], made / "t.csv")
    (row,) = csv.DictReader((made / "t.csv").read_text().splitlines())
    assert row["model"] == "'=HYPERLINK(evil)"
    assert row["'=HYPERLINK(1)/x"] == "1.0" and not any(head.startswith(("=", "@")) for head in row)
    assert float(row["dense/boolq/acc"]) == record["dense/boolq/acc"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "  =1", "\n=1"])
def test_formulas_are_escaped_and_numbers_are_not(text):
    assert cells.escape_formula(text) == f"'{text}"
    assert cells.escape_formula("a=1") == "a=1" and cells.escape_formula(-1.5) == -1.5


def test_markdown_shows_a_hostile_name_as_text():
    text = cells.markdown_table(pd.DataFrame({"name": ["<img src=x> | [a](b) `c`\nd"]}))
    assert text.splitlines()[2] == "| \\<img src=x> \\| \\[a](b) \\`c\\` d |"


# The tidy table, names and curves.


def test_tidy_table_has_each_number_once_with_keys(made):
    records = study.read_studies([made]).records
    rows = tidy.tidy_table(records)
    wanted = sum(
        key.startswith(("dense/", "pruned/", "healed/")) and not key.endswith("_stderr")
        for record in records
        for key in record
    )
    assert len(rows) == wanted
    one = rows[(rows["stage"] == "healed") & (rows["name"] == "boolq/acc")].iloc[0]
    record = records[one["run"]]
    assert one["value"] == record["healed/boolq/acc"] and one["stderr"] == record["healed/boolq/acc_stderr"]
    assert one["fraction"] == record["fraction"] and one["recipe"] == "qlora"
    assert set(rows[rows["stage"] == "dense"]["metric"]) == {""} and set(rows[rows["stage"] == "pruned"]["recipe"]) == {
        ""
    }
    assert set(rows[(rows["stage"] == "pruned") & (rows["prune"] == "deepest")]["metric"]) == {""}


def test_labels_name_only_settings_that_differ_and_matter(made):
    records = [json.loads(path.read_text()) for path in first(made)[:3]]
    for record in records:
        record["config"]["metric"] = {"_target_": "depthcut.metric.angular.Angular", "token": "last", "batch": 8}
        record["config"]["prune"] = {"_target_": "depthcut.prune.block.Block", "frac": 0.1, "keep_last": 1}
    records[1]["config"]["metric"] |= {"token": "all", "batch": 4}
    records[2]["config"]["prune"] |= {"frac": 0.3, "keep_last": 2}
    named = labels.record_labels(records)
    assert [each["metric"] for each in named] == ["angular token=last", "angular token=all", "angular token=last"]
    assert [each["prune"] for each in named] == ["block keep_last=1", "block keep_last=1", "block keep_last=2"]
    assert {each["model"] for each in named} == {"llama2_7b"}


def test_curve_stderr_combines_seed_spread_and_item_errors(made):
    records = study.read_studies([made]).records
    lines = curves.curve_lines(tidy.tidy_table(records))
    line = next(line for line in lines if line.healed and any(count > 1 for count in line.names["boolq/acc"].seeds))
    at = next(i for i, count in enumerate(line.names["boolq/acc"].seeds) if count > 1)
    own = [records[run] for run in line.runs[at]]
    values = np.array([record["healed/boolq/acc"] for record in own])
    errors = np.array([record["healed/boolq/acc_stderr"] for record in own])
    measured = line.names["boolq/acc"]
    assert measured.seeds[at] == len(own) == 2
    assert measured.value[at] == pytest.approx(values.mean())
    wanted = math.sqrt((errors**2).mean() + ((values - values.mean()) ** 2).sum() / (len(own) - 1) / len(own))
    assert measured.stderr[at] == pytest.approx(wanted)
    assert line.dropped == sorted(line.dropped)


def test_repeated_measurement_of_a_cut_is_one_point(made):
    records = study.read_studies([made]).records
    twin = json.loads(json.dumps(records[0]))
    twin["digest"], twin["config"]["seed"] = "0" * 16, 99
    before, after = (curves.curve_lines(tidy.tidy_table(each)) for each in (records, [*records, twin]))
    seeds = [[line.names["boolq/acc"].seeds for line in lines if not line.healed] for lines in (before, after)]
    assert seeds[0] == seeds[1]


def test_empty_cut_is_not_on_an_unhealed_curve(made):
    records = study.read_studies([made]).records
    none = json.loads(json.dumps(records[0]))
    none["plan"]["drop"], none["fraction"], none["digest"] = [], 0.0, "0" * 16
    assert all(
        0 not in line.dropped for line in curves.curve_lines(tidy.tidy_table([*records, none])) if not line.healed
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("boolq/acc", 0.5), ("mmlu_local/acc", 0.25), ("mmlu_abstract_algebra/acc", 0.25), ("mmlu_pro/exact_match", 0.1),
     ("arc_easy/acc_norm", 0.25), ("commonsenseqa_local/acc", 0.2), ("mine/acc", None), ("boolq/f1", None),
     ("validation/loss", None)],
)  # fmt: skip
def test_chance_levels(name, wanted):
    assert chance.chance_level(name) == wanted


# Transitions.


def logistic(fraction, middle, scale, low=0.25, high=0.75):
    return low + (high - low) / (1 + np.exp((fraction - middle) / scale))


def curve(values, fraction, stderr=0.01):
    return CurveData(fraction, np.asarray(values), np.full(len(fraction), stderr), 0.75, stderr, 0.25)


def test_clean_curve_recovers_midpoint_onset_and_width():
    fraction = np.linspace(0.05, 0.8, 16)
    found = transition_fit.fit_transition(curve(logistic(fraction, 0.4, 0.05), fraction, 0.005))
    assert found.seen and found.midpoint and found.onset and found.width
    # By bisection, not by the estimator's formula.
    tenth, half = (solved(lambda f: logistic(f, 0.4, 0.05), 0.75 - part * 0.5) for part in (0.1, 0.5))
    assert found.midpoint.at == pytest.approx(half, abs=0.005)
    assert found.onset.at == pytest.approx(tenth, abs=0.02)
    assert found.width.at == pytest.approx(2 * (half - tenth), abs=0.03)
    for interval in (found.midpoint, found.onset, found.width):
        assert interval.low <= interval.at <= interval.high


def solved(falling, value, low=0.0, high=1.0):
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > value else (low, middle)
    return low


def test_cliff_midpoint_interval_spans_the_gap():
    fraction = np.array([0.1, 0.2, 0.3, 0.5, 0.6])
    found = transition_fit.fit_transition(curve([0.75, 0.75, 0.75, 0.25, 0.25], fraction))
    assert found.midpoint
    assert found.midpoint.low == pytest.approx(0.3, abs=0.02) and found.midpoint.high == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("values", "why"),
    [([0.75] * 6, "flat"), ([0.75, 0.74, 0.76, 0.75, 0.74, 0.75], "flat"), ([0.75, 0.3, 0.7, 0.35, 0.74, 0.5], "flat"),
     ([0.75, 0.75, 0.74, 0.72, 0.67, 0.6], "unfinished"), ([0.75, 0.5, 0.25], "few")],
)  # fmt: skip
def test_no_transition_gives_no_number(values, why):
    found = transition_fit.fit_transition(curve(values, np.linspace(0.1, 0.6, 6)[: len(values)]))
    assert found == Transition(why, rough=found.rough) and not found.seen
    assert found.midpoint is found.onset is found.width is None


def test_dense_model_at_chance_has_no_transition():
    fraction = np.linspace(0.1, 0.6, 6)
    found = transition_fit.fit_transition(CurveData(fraction, np.full(6, 0.25), np.full(6, 0.02), 0.27, 0.02, 0.25))
    assert found.why == "dense"


def test_zero_error_is_replaced_by_a_floor():
    fraction = np.linspace(0.1, 0.8, 8)
    errors = np.full(8, 0.03)
    errors[2] = 0.0
    usual = CurveData(fraction, logistic(fraction, 0.4, 0.03), errors, 0.75, 0.03, 0.25)
    assert usual.errors.min() == 0.015
    assert transition_fit.fit_transition(usual).seen


def test_chi_squared_is_least_squares_over_the_amplitude():
    chance_ = np.random.default_rng(1)
    leads, errors, shares = (
        chance_.normal(0.3, 0.1, (3, 7)),
        chance_.uniform(0.01, 0.1, 7),
        chance_.uniform(0, 1, (5, 7)),
    )
    found = transition_fit.chi_squared(leads, errors, shares)
    for b in range(3):
        for g in range(5):
            (amplitude,), *_ = np.linalg.lstsq((shares[g] / errors)[:, None], leads[b] / errors, rcond=None)
            wanted = (((leads[b] - max(0, amplitude) * shares[g]) / errors) ** 2).sum()
            assert found[b, g] == pytest.approx(wanted)


def test_intervals_cover_the_truth_in_simulations(bench):
    """In a hundred draws."""
    found = bench.trial("falls", 100)
    assert found["seen"] >= 95
    assert found["midpoint"] >= 0.9 * found["seen"]
    assert found["onset"] >= 0.85 * found["seen"] and found["width"] >= 0.85 * found["seen"]
    assert found["midpoint long"] / found["seen"] < 0.12  # an interval of everything would hold the truth too


@pytest.mark.parametrize("kind", ["flat", "noisy", "at chance", "slopes"])
def test_flat_curves_rarely_show_a_transition(bench, kind):
    assert bench.trial(kind, 100)["seen"] <= 5


def test_transition_fit_is_deterministic(bench):
    drawn, *_ = bench.draw("falls", np.random.default_rng(3))
    assert transition_fit.fit_transition(drawn) == transition_fit.fit_transition(drawn)


def test_synthetic_studies_show_their_transitions_and_healing_shift(made):
    rows = tidy.tidy_table(study.read_studies([made]).records)
    found = transitions.curve_transitions(curves.curve_lines(rows), curves.dense_numbers(rows))
    seen = [fall for fall in found if fall.found.seen and chance.is_accuracy(fall.name)]
    assert len(seen) > 20
    moved = [fall.moved for fall in seen if fall.moved]
    assert moved and np.mean([each.at for each in moved]) == pytest.approx(0.08, abs=0.02)
    angular = [fall for fall in seen if fall.line.keys["prune"] == "block" and fall.line.keys["model"] == "llama2_7b"]
    held = [fall.found.midpoint.low <= 0.48 <= fall.found.midpoint.high for fall in angular if not fall.line.healed]
    assert len(held) == 6 and sum(held) >= 5
    assert all(fall.moved is None for fall in found if not fall.line.healed)
    assert {fall.name for fall in found} >= {"boolq/acc", "validation/loss"}


def test_loss_is_scaled_and_clipped_at_uniform_guess():
    names = {
        "validation/loss": curves.CurveValues([2.0, 30.0], [0.1, 0.1], [1, 1]),
        "validation/loss_over_log_v": curves.CurveValues([0.2, 3.0], [math.nan] * 2, [1, 1]),
    }
    line = curves.Line(dict.fromkeys(curves.KEYS, "") | {"depth": "10"}, [1, 2], names)
    level = {"validation/loss": (1.0, 0.05), "validation/loss_over_log_v": (0.1, math.nan)}
    fitted = transitions.loss_curve(line, level, "validation/loss")
    assert fitted is not None
    assert fitted.value.tolist() == pytest.approx([0.8, 0.0]) and fitted.dense == pytest.approx(0.9)
    assert fitted.stderr.tolist() == pytest.approx([0.01, 0.01]) and fitted.dense_stderr == pytest.approx(0.005)


def test_midpoint_difference_has_its_own_interval():
    one, two = (Transition("", midpoint=Interval(*each)) for each in ((0.3, 0.25, 0.31), (0.5, 0.48, 0.6)))
    moved = transitions.transition_shift(one, two)
    assert moved is not None and moved.at == pytest.approx(0.2)
    assert moved.low == pytest.approx(0.2 - math.hypot(0.02, 0.01)) and moved.high == pytest.approx(
        0.2 + math.hypot(0.1, 0.05)
    )
    assert transitions.transition_shift(Transition("flat"), two) is None


# Layers, scores, healing.


def strip(chooser, rows, depth=4):
    return layers.LayerStrip("m", chooser, "layer", depth, rows)


def test_agreement_is_the_shared_fraction_of_dropped_layers():
    same, other = {1: [0.0, 1, 0, 0], 2: [0.0, 1, 1, 0]}, {2: [1.0, 1, 0, 0], 3: [1.0, 1, 1, 0]}
    (found,) = layers.chooser_agreements([strip("a", same), strip("b", other), strip("c", {4: [1.0] * 4})])
    assert found.overlap[0, 1] == found.overlap[1, 0] == 0.5 and found.luck[0, 1] == 0.5 and found.sizes[0, 1] == 1
    assert math.isnan(found.overlap[0, 2]) and found.sizes[0, 2] == 0
    assert layers.chooser_agreements([strip("a", same)]) == []


def test_layer_strips_average_over_seeds(made):
    record = json.loads(first(made)[0].read_text())
    record["plan"] |= {"depth": 4, "drop": [[1, 2]]}
    other = json.loads(json.dumps(record))
    other["plan"]["drop"] = [[2, 3]]
    (found,) = layers.layer_strips([record, other, record])
    assert found.rows == {1: [0, 0.5, 0.5, 0]}


def test_score_map_has_starts_sizes_and_chosen_starts(made):
    found = score_maps.load_score_maps(study.read_studies([made]).points)
    one = next(each for each in found if each.model == "llama2_7b" and each.metric == "angular")
    scores = score_maps.read_cached_scores(made / "cache" / "scores" / one.digest)
    assert scores is not None and one.depth == 32
    for n, start in ((1, 0), (5, 7), (32, 0), (31, 1)):
        assert one.scores[n - 1, start] == scores.block(start, n)
    assert np.isnan(one.scores[31, 1]) and np.nanmin(one.normalised[4]) == 0 and np.nanmax(one.normalised[4]) == 1
    assert one.chosen and all(0 <= start <= 32 - n for n, start in one.chosen.items())


def test_missing_or_broken_scores_are_no_error(made):
    for path in (made / "cache" / "scores").iterdir():
        (path / "scores.json").write_text('{"format": 0}')
    record = json.loads(first(made)[0].read_text())
    studies.changed(first(made)[0], scores="../../../etc", study=record["study"])
    assert score_maps.load_score_maps(study.read_studies([made]).points) == []


def test_scorer_rank_correlations_follow_the_scores():
    def scored(metric, values):
        return score_maps.ScoreMap(metric, "m", metric, "layer", 4, np.zeros((4, 4)), values)

    (found,) = score_maps.rank_correlations(
        [scored("a", [1, 2, 3, 4]), scored("b", [10, 20, 30, 40]), scored("c", [4, 3, 2, 1]), scored("d", [1, 1, 1, 1])]
    )
    assert found.correlation[0, :3].tolist() == pytest.approx([1, 1, -1]) and math.isnan(found.correlation[0, 3])


def test_healing_curve_is_thinned_to_interval_means(tmp_path):
    rows = [f"{step},{10 * step},{step / 2},{step % 7}" for step in range(1, 104)]
    (tmp_path / "heal.csv").write_text(
        "\n".join(["step,tokens,seconds,loss", *rows, "104,broken", "105,1,2,nan", "106,10"])
    )
    steps = healing.read_loss_curve(tmp_path / "heal.csv")
    assert len(steps) == 103
    thin = healing.thin_curve(0, steps, 10)
    assert thin is not None and thin.each == 11 and len(thin.loss) == 10
    assert thin.tokens[0] == 110 and thin.tokens[-1] == 1030 and thin.seconds[-1] == 51.5
    assert thin.loss[0] == pytest.approx(np.mean([step % 7 for step in range(1, 12)]))
    assert thin.loss[-1] == pytest.approx(np.mean([step % 7 for step in range(100, 104)]))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "tokens,seconds,loss\n", "\x00\x01"])
def test_broken_healing_curve_is_skipped(tmp_path, text):
    (tmp_path / "heal.csv").write_text(text)
    assert len(healing.read_loss_curve(tmp_path / "heal.csv")) == 0
    assert healing.thin_curve(0, healing.read_loss_curve(tmp_path / "none.csv"), 10) is None
