"""The benchmarks run on a tiny model and print what they should; their timings are not checked."""

import importlib.util
import sys

import numpy as np
import pytest

from running import ROOT, run_bench, text_files


@pytest.fixture(scope="module")
def choosing():
    spec = importlib.util.spec_from_file_location("choosing", ROOT / "bench" / "choosing.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["choosing"] = module  # its dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["choosing"]


def test_scores_times_naive_metric_and_greedy_rounds(tmp_path):
    pico = ("--model", "pico", "--sequences", "8", f"outputs={tmp_path}/outputs", "data=files", *text_files(tmp_path))
    done = run_bench("scores.py", "--metrics", "angular,perplexity", "--markdown", "--full", *pico)
    assert done.returncode in (0, 1), done.stderr  # 1: over the target, which is for larger models
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pico: 8 layers, 8 sequences")
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert {"angular token=last", "angular token=all", "perplexity"} < rows.keys()
    assert rows["perplexity"][6] == f"{7 + 8 * 7 // 2} / {8 * 7} = 0.62"
    assert rows["perplexity"][7] == "8"
    assert "naive values and scores differ by 0.0e+00" in done.stdout
    rounds = [line.split(" | ") for line in lines if line.startswith(("| 1 |", "| 2 |"))]
    assert [int(each[1]) for each in rounds] <= [int(each[2]) for each in rounds] <= [int(each[3]) for each in rounds]
    assert int(rounds[1][1]) < int(rounds[1][2])


def test_unknown_metric_lists_the_choices():
    done = run_bench("choosing.py", "--metrics", "beauty")
    assert done.returncode == 2
    assert "no metric 'beauty'; available: angular," in done.stderr.splitlines()[-1]


def test_choosing_updates_tables_and_keeps_the_prose(tmp_path):
    page = tmp_path / "page.md"
    above = "# Title\n\nFound by hand.\n\n"
    page.write_text(f"{above}<!-- made by `python bench/choosing.py` -->\nold\n<!-- /choosing -->\n")
    few = ("data.calibration.sequences=8", "data.validation.sequences=8")
    pico = ("model=pico", "data=files", *few, f"outputs={tmp_path}/outputs", *text_files(tmp_path))
    asked = ("--metrics", "angular", "--fractions", "0.25,0.5", "--to", page, *pico)
    done = run_bench("choosing.py", *asked)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith(f"{above}<!-- made")
    assert "\nold\n" not in text
    assert "|  | deepest | 5-6 | 3-6 |" in text
    rows = [line.removesuffix(" |").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    measured = [row for row in rows if len(row) == 5 and "." in row[3]]
    dense, *cuts = measured
    assert dense[0] == "| dense model"
    assert len(cuts) == 7
    for column in (3, 4):
        bold = [line[column] for line in cuts if line[column].startswith("**")]
        assert {float(each.strip("*")) for each in bold} == {min(float(line[column].strip("*")) for line in cuts)}
    assert "| 2 angular token=all |" in text
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("record.json")}
    assert run_bench("choosing.py", *asked).returncode == 0
    assert page.read_text() == text
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("record.json")}


def test_choosing_has_a_row_per_metric_and_pruner(choosing):
    words = {word for row in choosing.ROWS for word in row.split()}
    for group in ("metric", "prune"):
        there = {f"{group}={path.stem}" for path in (ROOT / "conf" / group).glob("*.yaml")} - {"prune=plan"}
        assert there <= words


def test_ranks_share_ties(choosing):
    assert choosing.ranks([30.0, 10.0, 20.0]).tolist() == [3, 1, 2]
    assert choosing.ranks([1.0, 5.0, 1.0, 0.0]).tolist() == [2.5, 4, 2.5, 1]
    # Spearman's by the formula for no ties: 1 - 6 sum d^2 / (n (n^2 - 1))
    a, b = [3.0, 1.0, 2.0, 9.0, 4.0], [2.0, 3.0, 1.0, 7.0, 8.0]
    off = choosing.ranks(a) - choosing.ranks(b)
    expected = 1 - 6 * (off**2).sum() / (5 * 24)
    assert np.corrcoef(choosing.ranks(a), choosing.ranks(b))[0, 1] == pytest.approx(expected)
