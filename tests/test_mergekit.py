"""The format is that of mergekit 0.1.5; its own reader and merge were run on such files by hand."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from depthcut.cut.plan import Plan
from depthcut.study import mergekit


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "depthcut.mergekit", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("drop", [(), (0,), (7,), (2, 3, 6), (0, 1, 3, 5, 7), (1, 2, 3, 4, 5, 6, 7)])
def test_slices_cover_kept_layers_in_order(drop: tuple[int, ...]) -> None:
    plan = Plan(8, drop)
    content = yaml.safe_load(mergekit.slice_yaml(plan, "owner/name"))
    assert content == OmegaConf.to_container(OmegaConf.create(mergekit.slice_yaml(plan, "owner/name")))
    assert content.keys() == {"slices", "merge_method", "dtype"}
    assert (content["merge_method"], content["dtype"]) == ("passthrough", "bfloat16")
    ranges = []
    for each in content["slices"]:
        (source,) = each["sources"]
        assert source.keys() == {"model", "layer_range"} and source["model"] == "owner/name"
        ranges.append(source["layer_range"])
    assert tuple(layer for start, stop in ranges for layer in range(start, stop)) == plan.keep
    assert all(stop < start for (_, stop), (start, _) in pairwise(ranges))


def test_output_matches_a_published_file() -> None:
    """The slice file of a public model: 0-23 and 30-31 of 32 layers."""
    wanted = """
slices:
  - sources:
    - model: microsoft/Phi-3-small-8k-instruct
      layer_range: [0, 24]
  - sources:
    - model: microsoft/Phi-3-small-8k-instruct
      layer_range: [30, 32]
merge_method: passthrough
dtype: float16
"""
    text = mergekit.slice_yaml(Plan(32, tuple(range(24, 30))), "microsoft/Phi-3-small-8k-instruct", "float16")
    assert yaml.safe_load(text) == yaml.safe_load(wanted)
    assert text.startswith("# depthcut drops layers 24-29 of 0-31, keeps 26.\n") and "layer_range: [0, 24]\n" in text


@pytest.mark.parametrize("model", ["a: b", "- x", "#", "ünï/cödé " + "long" * 60, "yes", "12"])
def test_any_model_name_survives_yaml(model: str) -> None:
    assert yaml.safe_load(mergekit.slice_yaml(Plan(3, (1,)), model))["slices"][1]["sources"][0]["model"] == model


def test_sublayer_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="this plan drops the mlp of layers; mergekit slices contain whole layers"):
        mergekit.slice_yaml(Plan(4, (1,), "mlp"), "x")


def test_command_prints_or_writes(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    Plan(4, (1,)).write(path)
    printed = command(path, "--model", "a/b")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout == mergekit.slice_yaml(Plan(4, (1,)), "a/b")
    written = command(path, "--model", "a/b", "--dtype", "float32", "-o", tmp_path / "new" / "slices.yaml")
    assert (written.returncode, written.stdout, written.stderr) == (0, "", "")
    assert (tmp_path / "new" / "slices.yaml").read_text() == mergekit.slice_yaml(Plan(4, (1,)), "a/b", "float32")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.json", "--model", "x"], "error: no plan at none.json"),
        (["{folder}/plan.json"], "error: the following arguments are required: --model; usage: depthcut mergekit"),
        (["{folder}/plan.json", "--model", "x", "--dtype", "int"], "error: argument --dtype: invalid choice: 'int'"),
        (["{folder}/plan.json", "--model", "x", "-o", "{folder}"], "error: cannot write"),
        (["{folder}/halves.json", "--model", "x"], "error: this plan drops the attention of layers"),
    ],
)
def test_error_is_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    Plan(4, (1,)).write(tmp_path / "plan.json")
    Plan(4, (1,), "attention").write(tmp_path / "halves.json")
    ended = command(*[each.format(folder=tmp_path) for each in arguments])
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(says) and ended.stderr.count("\n") == 1
