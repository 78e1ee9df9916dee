"""The example of CONTRIBUTING.md works; common mistakes in a new method are named."""

import dataclasses
import re
import runpy
import subprocess
import sys

import pytest
import yaml

from composing import ROOT
from depthcut import metric
from depthcut.config import methods
from depthcut.cut.scores import Scores
from depthcut.metric.random import Random
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict
from depthcut.study.run import open_run
from depthcut.study.scoring import Scoring
from gaps import model_of, opened

BLOCK = re.compile(r"^In `(?P<path>[^`]+)`:\n\n```\w+\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
CODE, YAML, TEST = "src/depthcut/metric/growth.py", "conf/metric/growth.yaml", "tests/test_growth.py"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes a text the module ``depthcut.metric.growth``, which the test's end removes."""
    monkeypatch.setattr(metric, "__path__", [*metric.__path__, str(tmp_path)])
    yield (tmp_path / "growth.py").write_text
    sys.modules.pop("depthcut.metric.growth", None)
    vars(metric).pop("growth", None)


def test_example_passes_its_own_tests(install, tmp_path):
    install(EXAMPLE[CODE])
    (tmp_path / "test_growth.py").write_text(EXAMPLE[TEST])
    tests = [each for name, each in runpy.run_path(str(tmp_path / "test_growth.py")).items() if name[:5] == "test_"]
    assert len(tests) == 2
    for test in tests:
        test()


def test_example_is_built_from_its_yaml(install):
    install(EXAMPLE[CODE])
    built = methods.build_method("metric", yaml.safe_load(EXAMPLE[YAML]))
    assert (built.word, built.batch) == ("growth", 8)


@pytest.mark.parametrize("path", [CODE, TEST])
def test_example_is_linted(path):
    unsorted = "--ignore=I001"  # ruff takes the import of growth for a library's, because that file does not exist
    for command in (["check", unsorted], ["format", "--check"]):
        call = [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"]
        done = subprocess.run(call, input=EXAMPLE[path], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("written", "instead", "fault"),
    [
        ("class Growth", "class Growths", "has no class Growth$"),
        ("(BlockMetric)", "", "does not subclass Metric"),
        ("@strict\n", "", "is not decorated with @strict"),
        ("def compare", "def compares", "is abstract: it does not define compare"),
        (
            "@strict\nclass Growth(BlockMetric)",
            "from depthcut.metric.kl import Kl as Growth\nclass G(BlockMetric)",
            "is defined in",
        ),
    ],
)
def test_mistake_in_a_method_is_named(install, written, instead, fault):
    install(EXAMPLE[CODE].replace(written, instead))
    with pytest.raises(UserError, match=rf"^metric\._target_: depthcut\.metric\.growth.* {fault}"):
        methods.build_method("metric", yaml.safe_load(EXAMPLE[YAML]))


def test_missing_module_inside_a_method_keeps_its_traceback(install):
    install("import no_such_module\n" + EXAMPLE[CODE])
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        methods.build_method("metric", yaml.safe_load(EXAMPLE[YAML]))


def test_option_with_a_default_is_refused(install):
    install(EXAMPLE[CODE].replace('all tokens."""\n', 'all tokens."""\n\n    scale: float = 1.0\n'))
    with pytest.raises(TypeError, match=r"Growth\.scale has a default; write the value into the yaml"):
        methods.build_method("metric", yaml.safe_load(EXAMPLE[YAML]))


@strict
class OneLayerShort(Random):
    """Gives no score for the last layer."""

    def __call__(self, subject, removed=(), _="layer") -> Scores:
        zeros = [0.0] * (subject.dense.depth - len(removed) - 1)
        return Scores.of_layers(zeros, zeros)


def test_scores_of_too_few_layers_are_refused(tmp_path):
    here = opened(tmp_path, model_of("llama"), "metric=random", "prune=lowest", "heal=none")
    wrong = dataclasses.replace(here.experiment, metric=OneLayerShort(seed=0))
    with pytest.raises(AssertionError, match="5 layers scored, expected 6"):
        Scoring(open_run(wrong))()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(AssertionError, match="scores must be finite"):
        Scores.of_layers([0.0, value], [0.0, 0.0])
