"""``prune=plan``: layers given on the command line, plan files, and plans of other models."""

import json
from pathlib import Path

import pytest

from composing import composed
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.runtime.errors import UserError
from depthcut.study import digests
from depthcut.study.run import Run, open_run
from running import light, text_files


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    text_files(folder)
    return folder


def entered(home: Path, *words: str) -> Run:
    text = f"data.train.paths=[{home}/corpus.jsonl]"
    options = ("model=pico", "data=files", text, "eval=[loss]", "heal=none", f"outputs={home}/outputs", "prune=plan")
    return open_run(build.build_experiment(composed(*options, *words)))


def named(here: Run) -> tuple[str, str]:
    return here.digest, digests.pruned_digest(here, here.experiment.prune(None, here.sizes))


def test_drop_list_and_plan_file_share_a_digest(home: Path) -> None:
    path = home / "plan.json"
    here = entered(home, "prune.drop=[5,2-3]")
    found = {named(here)}
    plan = Plan(8, (2, 3, 5), model=here.checkpoint.digest)
    contents = [plan.to_dict(), {"drop": [2, 3, 5]}, {"drop": [[2, 4], [5, 6]]}, {"drop": ["2-3", 5]}]
    for content in contents:
        path.write_text(json.dumps(content))
        found.add(named(entered(home, f"prune.path={path}")))
    assert len(found) == 1
    assert here.experiment.prune(None, here.sizes) == Plan(8, (2, 3, 5))
    assert entered(home, "prune.drop=2-3").experiment.prune.count(here.sizes) == 2


def test_plan_for_another_model_is_refused(home: Path) -> None:
    path = home / "other.json"
    Plan(8, (2, 3), model="0123456789abcdef").write(path)
    with pytest.raises(UserError, match=r"other\.json was made for model 01234567, this is [0-9a-f]{8}\. Choose"):
        entered(home, f"prune.path={path}")
    Plan(9, (2, 3)).write(path)
    with pytest.raises(UserError, match=r"other\.json is a plan for 9 layers; this model has 8"):
        entered(home, f"prune.path={path}")


MISTAKES = [
    ((), r"prune=plan needs either prune\.drop=\[11-18\] or prune\.path=plan\.json; neither is set"),
    (("prune.drop=[1]", "prune.path=x"), "prune=plan needs either .* both are set"),
    (("prune.drop=[[1,4]]",), r"prune\.drop must be layers and spans with both ends, such as \[3,11-18\], got"),
    (("prune.drop=[four]",), 'prune.drop: span "four" must be'),
    (("prune.drop=[4-2]",), "prune.drop: span 4-2 is reversed"),
    (("prune.drop=[2-4,4]",), "prune.drop: spans .* overlap"),
    (("prune.drop=[1.5]",), "prune.drop"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_invalid_drop_list_is_a_config_error(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}"):
        build.build_experiment(composed("model=pico", "prune=plan", *words))


def test_layer_beyond_the_model_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match=r"^prune\.drop: span 6-8 is out of range: the model has layers 0-7$"):
        entered(home, "prune.drop=[6-8]")


def test_invalid_drop_list_loads_nothing_heavy() -> None:
    done = light("prune=plan", "prune.drop=[4-2]")
    assert done.returncode == 2 and done.stderr.startswith("error: prune.drop: span 4-2 is reversed")
