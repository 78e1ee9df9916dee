"""Paths in options: the same syntax everywhere, and a hint to quote what Hydra cannot parse."""

from pathlib import Path

import pytest

from composing import composed
from depthcut.config import build
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import quote_paths
from running import run, text_files

WORDS = [
    ("outputs=~/out", "outputs=/home/me/out"),
    ('model.path="~/x"', 'model.path="/home/me/x"'),
    ("data.train.paths=[~/a.jsonl, ~/b (1).txt]", "data.train.paths=[/home/me/a.jsonl,'/home/me/b (1).txt']"),
    ("+eval.perplexity.texts.mine.paths=[~/a=b.txt]", "+eval.perplexity.texts.mine.paths=['/home/me/a=b.txt']"),
    ("model.path=/x/epoch=3-step=100", "model.path='/x/epoch=3-step=100'"),
    ("model.path=it's", r"model.path='it\'s'"),
    ("model.path=a,b=1", "model.path=a,'b=1'"),
    ("heal.init_from=1234567890123456", "heal.init_from='1234567890123456'"),
    ("heal.init_from=null", "heal.init_from=null"),
    ("prune.path=choice(a,b)", "prune.path=choice(a,b)"),
    ("data.train.paths=${data.validation.paths}", "data.train.paths=${data.validation.paths}"),
    ("~heal.rank", "~heal.rank"),
    ("name=~x", "name=~x"),
]


@pytest.mark.parametrize(("typed", "read"), WORDS)
def test_paths_on_the_command_line(monkeypatch: pytest.MonkeyPatch, typed: str, read: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(typed) == read


def test_every_path_option_expands_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["data.calibration", "data.train", "data.validation", "eval.perplexity.texts.wikitext2"]
    words = ["model.path='~/x'", "prune.path='~/x'", "outputs='~/x'", "heal.init_from='~/x'"]
    words += [f"{key}.paths=['~/x']" for key in paths]
    x = build.build_experiment(composed("model=local", "data=files", "prune=plan", "eval=[perplexity]", *words))
    texts = [x.data.calibration, x.data.train, x.data.validation, x.eval["perplexity"].source("wikitext2")]
    found = [x.outputs, x.model.path, x.prune.path, x.heal.init_from, *(each.paths[0] for each in texts)]
    assert found == ["/home/me/x"] * 8


@pytest.mark.parametrize("multirun", [(), ("-m",)])
def test_home_folder_and_odd_names_in_a_run(tmp_path: Path, multirun: tuple[str, ...]) -> None:
    text_files(tmp_path)
    odd = (tmp_path / "corpus.jsonl").rename(tmp_path / "my text (v=2).jsonl").name
    words = ("model=pico", "data=files", f"data.train.paths=[~/{odd}]", "eval=[loss]", "heal=none", "prune=deepest")
    done = run(*multirun, *words, "stages=[pruned]", "export=none", 'outputs="~/out"', HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("out/main/*/record.json"))) == 1
    assert not Path("~").exists()


def test_unparsable_override_suggests_quoting() -> None:
    done = run("name=a=b")
    assert done.returncode == 2
    assert """type the quotes too: 'name="a=b"'""" in done.stderr


def test_empty_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"^prune\.path"):
        build.build_experiment(composed("prune=plan", "prune.path=''"))
