"""Random overrides of any key: each takes effect, or is refused in one line that names it."""

import dataclasses

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from depthcut.cli import main
from depthcut.cli.composition import Loader
from depthcut.config import build
from depthcut.config.values import walk_values
from depthcut.runtime import failures

LOADER = Loader()
BASE = ("model=pico", "eval=[loss,harness,perplexity,speed]")
START = build.build_experiment(main.compose_config(LOADER, BASE)).composed
PATHS = [path for path, _ in walk_values("", START) if "[" not in path]
GROUPS = ["model", "metric", "prune", "replace", "heal", "eval", "log", "experiment", "data", "data/train"]
FOREIGN = ["hydra", "hydra/launcher", "hydra.callbacks.x._target_", "hydra.searchpath", "hydra.job.env_set.PATH"]

keys = st.one_of(
    st.sampled_from(PATHS),
    st.sampled_from(PATHS + GROUPS).map(lambda path: f"{path}._target_"),
    st.tuples(st.sampled_from(PATHS), st.sampled_from(["x", "a.b", "0", "frac", "é", "api_key", "limit"])).map(
        ".".join
    ),
    st.sampled_from(GROUPS),
    st.sampled_from([*FOREIGN, "composed", "eval.taks", "_target_"]),
)
# fmt: off
ODD = [
    "nan", "-inf", "-0.0", "1e400", "1e300", "1e16", "0x10", "1_0", "-1", "0", "1.5", "true", "off", "null", "???", "",
    "''", "a", "a b", "'a b'", "50%", "a,b", "=", "a=b", "@", "💥", "\\", "\x1b[31m", "\udcff", "9" * 30,
    "9" * 5000, "x" * 5000,
    "[1,2,3]", "[]", "[[1]]", "[" * 300, "{a: 1}", "{a: {_target_: os.system}}", "{1: 2}",
    "range(0,3)", "choice(1,2)", "interval(0,1)", "${nosuch}", "${prune.frac}", "${eval}", "${.}", "${", "${now:%Y}",
    "${oc.env:HOME}", "'${oc.${name}:HOME}'", "os.system", "depthcut.metric.angular", "depthcut.metric.Metric",
    "depthcut.eval.loss.Eval", "depthcut.log.wandb.Path",
]
# fmt: on
values = st.one_of(
    st.sampled_from(ODD),
    st.integers(1, 8).map(str),
    st.integers().map(str),
    st.floats(0, 1).map(str),
    st.text(max_size=12),
)
words = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), keys, values)
deletions = keys.map("~{}".format)


@settings(max_examples=1000, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(words, words, words, words, deletions))
@example("~prune")
@example("eval=[1,2,3]")
@example("++data.train.span.a=1")
@example("log=-0.0")
@example("replace=${nosuch}")
def test_override_takes_effect_or_fails_in_one_line(word):
    """The line names the key."""
    key = word.lstrip("+~").partition("=")[0]
    try:
        x = build.build_experiment(main.compose_config(LOADER, [*BASE, word]))
    except Exception as error:
        line = failures.user_error_line(error)
        assert line is not None, (word, repr(error))
        named = key.split("/")[0].split(".")[-1] in line or key.rpartition(".")[2] in line
        parent, refused, _ = line.partition(": no such key")
        assert named or (refused and key.startswith(f"{parent}.")), (word, line)
        assert len(line) < 1500, (word, line)
        return
    assert word.startswith("~") or is_read(x, key), word


def is_read(x, key: str) -> bool:
    """Tell whether a config key is a field of the built object, or a choice."""
    if key in GROUPS:
        return True
    first, *rest = key.split(".")
    value = getattr(x, first)
    if first == "eval" and rest in (["tasks"], ["limit"], ["include_path"]):
        return True
    for name in rest:
        if name == "_target_":
            return True
        if isinstance(value, dict):
            value = value[name]
            continue
        assert name in {each.name for each in dataclasses.fields(value)}, (key, name)
        value = getattr(value, name)
    return True


def test_earlier_compositions_leave_no_trace():
    assert build.build_experiment(main.compose_config(LOADER, BASE)).composed == START
