"""Every stored config composes to the values that it promises, and to an Experiment."""

import pytest

from composing import ROOT, composed
from depthcut import config
from depthcut.report import methods
from depthcut.shape import Shape

PAPER = {  # Gromov et al. 2024, appendix A.1: repo, rank, peak learning rate, tokens a sequence
    "llama2_7b": ("meta-llama/Llama-2-7b-hf", 2, 3e-4, 2048),
    "llama2_13b": ("meta-llama/Llama-2-13b-hf", 64, 3e-4, 4096),
    "llama2_70b": ("meta-llama/Llama-2-70b-hf", 8, 3e-5, 4096),
    "qwen_7b": ("Qwen/Qwen-7B", 64, 3e-4, 2048),
    "qwen_14b": ("Qwen/Qwen-14B", 64, 3e-4, 4096),
    "mistral_7b": ("mistralai/Mistral-7B-v0.1", 4, 3e-6, 2048),
    "phi_2": ("microsoft/phi-2", 64, 2e-4, 2048),
}
OTHERS = {
    "llama3_8b": ("meta-llama/Meta-Llama-3-8B", 8, 1e-4, 4096),
    "llama3_70b": ("meta-llama/Meta-Llama-3-70B", 8, 3e-5, 4096),
    "qwen3_8b": ("Qwen/Qwen3-8B-Base", 8, 1e-4, 4096),
    "gemma3_270m": ("google/gemma-3-270m", 8, 1e-4, 2048),
    "llama_7b": ("huggyllama/llama-7b", 8, 1e-4, 2048),
    "vicuna_7b": ("lmsys/vicuna-7b-v1.3", 8, 1e-4, 2048),
    "vicuna_13b": ("lmsys/vicuna-13b-v1.3", 8, 1e-4, 2048),
}
HUB = {**PAPER, **OTHERS}
HERE = {"smollm2_135m", "pico", "local"}


def test_every_model_file_is_in_this_test():
    assert {path.stem for path in (ROOT / "conf/model").glob("*.yaml")} == HUB.keys() | HERE


@pytest.mark.parametrize("model", HUB)
def test_a_model_alone_means_the_papers_run(model):
    repo, rank, lr, length = HUB[model]
    x = composed(f"model={model}", "prune.frac=0.5")
    assert (x.model.repo, x.model.quantise, x.model.dtype) == (repo, "nf4", "bfloat16")
    heal = x.heal
    assert heal._target_ == "depthcut.heal.qlora.QLora"
    assert (heal.rank, heal.alpha, heal.lr, heal.length) == (rank, rank, lr, length)
    assert (heal.steps, heal.batch, heal.warmup, heal.dropout, heal.modules) == (5000, 16, 100, 0.05, "ffn")
    assert x.data.train.dataset == x.data.validation.dataset == x.data.calibration.dataset == "allenai/c4"
    assert (x.data.train.split, x.data.validation.split, x.data.calibration.split) == (
        "train",
        "validation",
        "validation",
    )
    assert (x.data.train.length, x.data.calibration.sequences) == (length, 10000)
    assert list(x.eval.harness.tasks) == ["mmlu@5", "boolq"] and x.eval.harness.limit is None
    assert x.eval.loss._target_ == "depthcut.eval.loss.Loss"
    assert (x.prune.frac, x.prune.keep_last, x.metric._target_) == (0.5, 1, "depthcut.metric.angular.Angular")
    assert isinstance(config.read(x), config.Experiment)


@pytest.mark.parametrize("model", ["llama2_7b", "llama2_70b"])
def test_healing_tokens_are_the_papers(model):
    heal = composed(f"model={model}").heal
    assert heal.steps * heal.batch * heal.length / 1e6 == pytest.approx({2048: 164, 4096: 328}[heal.length], rel=0.01)


def test_the_default_is_the_demo():
    x = config.read(composed())
    assert type(x.model).__name__ == "SmolLM2" and x.model.separator == "<|endoftext|>"
    assert x.prune.count(Shape(30)) == 8
    assert (x.stages, x.export) == (["dense", "pruned", "healed"], "merged")


def test_local_takes_a_path_and_the_default_recipe():
    x = composed("model=local", "model.path=some/folder")
    assert (x.model.path, x.heal.rank, x.heal.lr) == ("some/folder", 8, 1e-4)


def test_the_command_line_wins_over_the_models_file():
    x = composed(
        "model=llama2_70b", "heal=lora", "data=demo", "eval=[loss]", "model.quantise=none", "model.heal.rank=3"
    )
    assert x.heal._target_.endswith("lora.Lora") and x.heal.rank == 3
    assert x.data.train._target_.endswith("demo.Demo")
    assert "harness" not in x.eval
    x = composed("model=pico", "data/train=files", "data.train.paths=[a.txt]")
    assert x.data.train._target_.endswith("files.Files") and x.data.validation._target_.endswith("demo.Demo")


def test_the_readmes_table_of_methods_is_that_of_the_files():
    readme = (ROOT / "README.md").read_text()
    assert methods.renewed(readme) == readme, "python -m depthcut.report.methods"


GROUPS = ["metric", "prune", "replace", "heal", "log", "experiment"]


def options() -> list[str]:
    return [f"{group}={path.stem}" for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", options())
def test_every_stored_choice_makes_an_experiment(choice):
    extra = {
        "heal=qlora": ["model.quantise=nf4"],
        "prune=plan": ["prune.path=plan.json"],
        "prune=greedy": ["metric=kl"],
        "prune=evolution": ["metric=kl"],
    }.get(choice, [])
    assert isinstance(config.read(composed("model=pico", choice, *extra)), config.Experiment)


@pytest.mark.parametrize("group", ["metric", "prune", "replace", "heal"])
def test_code_and_yaml_have_the_same_names(group):
    code = {path.stem for path in (ROOT / "src/depthcut" / group).glob("*.py")} - {"__init__"}
    assert code == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
