"""Model cards: base, licence, numbers, command, usage; and the tokens that end generation."""

import json
from pathlib import Path

import pytest
import yaml

from composing import composed
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.study import card, export
from depthcut.study.run import open_run

PLAN = Plan(8, (2, 3))
APACHE = "Apache License\n  Version 2.0, January 2004\n"


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("card")
    return build.build_experiment(composed("model=pico")).model.open(cache).files.folder


def carded(pico: Path, tmp_path: Path, files: dict[str, str], base: str = "") -> tuple[dict, str]:
    folder = tmp_path / "my_model"
    folder.mkdir()
    for file in pico.iterdir():
        if file.is_file() and file.name != "manifest.json":
            (folder / file.name).symlink_to(file)
    if base:
        described = json.loads((folder / "config.json").read_text()) | {"_name_or_path": base}
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(described))
    for name, text in files.items():
        (folder / name).write_text(text)
    words = ("model=local", f"model.path={folder}", f"outputs={tmp_path}/o", "prune=plan", "prune.drop=[2-3]")
    here = open_run(build.build_experiment(composed(*words, "data/train=hub", "data.train.dataset=owner/texts")))
    here.numbers = {
        "pruned/validation/loss": 4.25,
        "pruned/validation/loss_stderr": 0.125,
        "healed/validation/loss": 4.0,
    }
    made = card.model_card(here, PLAN, alone=True)
    return yaml.safe_load(made.split("---")[1]), made


LICENCES = [
    ({"README.md": "---\nlicense: mit\nlanguage: en\n---\n# x"}, "", {"license": "mit"}),
    (
        {"README.md": "---\nlicense: other\nlicense_name: mine\n---\n", "LICENSE": APACHE},
        "",
        {"license": "other", "license_name": "mine"},
    ),
    ({"LICENSE": APACHE}, "", {"license": "apache-2.0"}),
    ({}, "meta-llama/Llama-2-7b-hf", {"license": "llama2"}),
    ({"README.md": "---\n: [\n---\n"}, "", card.UNKNOWN),
    ({}, "", card.UNKNOWN),
]


@pytest.mark.parametrize(("files", "base", "wanted"), LICENCES)
def test_card_has_the_base_models_licence(
    pico: Path, tmp_path: Path, files: dict[str, str], base: str, wanted: dict[str, str]
) -> None:
    front, made = carded(pico, tmp_path, files, base)
    assert {key: front[key] for key in front if key.startswith("license")} == wanted
    assert ("Fill in the licence" in made) == (wanted == card.UNKNOWN)
    assert front.get("base_model") == (base or None)


def test_card_lists_results_plan_usage_and_citation(pico: Path, tmp_path: Path) -> None:
    front, made = carded(pico, tmp_path, {})
    assert front["pipeline_tag"] == "text-generation" and front["datasets"] == ["owner/texts"]
    assert "pruned" in front["tags"]
    assert "# my_model, drops layers 2-3 of 0-7, keeps 6" in made
    assert "| validation/loss | 4.250 ± 0.125 | 4.000 |" in made
    assert "AutoModelForCausalLM.from_pretrained(path)" in made and "depthcut model=" in made
    assert "Versions: python" in made and "depthcut" in made and "@article{gromov2024" in made
    config_block = made.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(config_block)["prune"]["drop"] == ["2-3"]


@pytest.mark.parametrize(
    ("before", "after"), [({"eos_token_id": 2}, [2, 7]), ({"eos_token_id": [2, 7]}, [2, 7]), ({}, [1, 7])]
)
def test_separator_is_added_to_eos_tokens(tmp_path: Path, before: dict, after: list[int]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(before))
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    export.stop_at_separator(tmp_path, 7)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == after
