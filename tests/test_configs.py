"""Every stored config composes to its documented values, and to an Experiment."""

import subprocess
import sys

import pytest

from composing import ROOT, composed
from depthcut import algorithm
from depthcut.config import build, experiment
from depthcut.model.surgery.sizes import ModelSize
from depthcut.runtime.errors import UserError
from depthcut.study.run import open_run
from running import text_files

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
def test_model_alone_means_the_papers_setup(model):
    repo, rank, lr, length = HUB[model]
    x = composed(f"model={model}", "prune.frac=0.5")
    assert (x.model.repo, x.model.quantise, x.model.dtype) == (repo, "nf4", "bfloat16")
    heal = x.heal
    assert heal._target_ == "depthcut.heal.qlora.QLora"
    assert (heal.rank, heal.alpha, heal.lr, heal.length) == (rank, rank, lr, length)
    assert (heal.steps, heal.batch, heal.dropout, heal.modules) == (5000, 16, 0.05, "ffn")
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
    assert build.build_experiment(x).heal.warmup == 100


@pytest.mark.parametrize("model", ["llama2_7b", "llama2_70b"])
def test_healing_tokens_match_the_paper(model):
    heal = composed(f"model={model}").heal
    assert heal.steps * heal.batch * heal.length / 1e6 == pytest.approx({2048: 164, 4096: 328}[heal.length], rel=0.01)


def test_default_config_is_the_demo():
    x = build.build_experiment(composed())
    assert type(x.model).__name__ == "SmolLM2" and x.model.separator == "<|endoftext|>"
    assert x.prune.count(ModelSize(30)) == 8
    assert (x.stages, x.export) == (["dense", "pruned", "healed"], "merged")


def test_local_model_uses_the_default_recipe():
    x = composed("model=local", "model.path=some/folder")
    assert (x.model.path, x.heal.rank, x.heal.lr) == ("some/folder", 8, 1e-4)


def test_command_line_overrides_the_model_file():
    x = composed(
        "model=llama2_70b", "heal=lora", "data=demo", "eval=[loss]", "model.quantise=none", "model.heal.rank=3"
    )
    assert x.heal._target_.endswith("lora.Lora") and x.heal.rank == 3
    assert x.data.train._target_.endswith("demo.Demo")
    assert "harness" not in x.eval
    x = composed("model=pico", "data/train=files", "data.train.paths=[a.txt]")
    assert x.data.train._target_.endswith("files.Files") and x.data.validation._target_.endswith("demo.Demo")


def test_readme_method_table_is_up_to_date():
    call = [sys.executable, ROOT / "tools" / "methods.py", "--check"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


GROUPS = ["metric", "prune", "replace", "heal", "log", "experiment"]


def options() -> list[str]:
    return [f"{group}={path.stem}" for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", options())
def test_every_config_choice_builds_an_experiment(choice):
    extra = {
        "heal=qlora": ["model.quantise=nf4"],
        "prune=plan": ["prune.drop=[1-2]"],
        "prune=greedy": ["metric=kl"],
        "prune=evolution": ["metric=kl"],
    }.get(choice, [])
    assert isinstance(build.build_experiment(composed("model=pico", choice, *extra)), experiment.Experiment)


@pytest.mark.parametrize("group", ["metric", "prune", "replace", "heal"])
def test_code_and_yaml_have_the_same_names(group):
    code = {path.stem for path in (ROOT / "src/depthcut" / group).glob("*.py")} - {"__init__"}
    assert code == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


EXPERIMENTS = {  # metric, pruner, replacement, layers dropped of 30 and of 32
    "gromov": ("Angular", "Block", "NoReplacement", 8, 9),
    "shortened_llama": ("Taylor", "Lowest", "NoReplacement", 6, 6),
    "shortened_llama_cpt": ("Taylor", "Lowest", "NoReplacement", 6, 6),
    "flexigpt": ("BlockInfluence", "Lowest", "Shared", 8, 9),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("model", ["smollm2_135m", "llama2_7b"])
def test_experiment_preset_matches_its_paper(name, model):
    x = build.build_experiment(composed(f"experiment={name}", f"model={model}"))
    found = tuple(type(each).__name__ for each in (x.metric, x.prune, x.replace))
    metric, prune, replace, of_30, of_32 = EXPERIMENTS[name]
    assert found == (metric, prune, replace)
    assert (x.prune.count(ModelSize(30)), x.prune.count(ModelSize(32))) == (of_30, of_32)
    assert x.heal.trains and (name in ("gromov", "shortened_llama_cpt") or x.heal.modules == "all")
    assert x.data.train.length == x.heal.length


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (("heal.length=1000",), 1000),
        (("model.heal.length=99",), 99),
        (("heal=none", "model.heal.length=99"), 99),
        (("data=c4", "heal=distill", "heal.length=33"), 33),
    ],
)
def test_training_text_length_equals_healing_length(overrides, length):
    x = build.build_experiment(composed("model=pico", *overrides))
    assert x.data.train.length == length == getattr(x.heal, "length", length)


def test_mismatched_training_text_length_is_refused():
    said = (
        r"data.train.length must be heal.length \(64\), got 512; set only heal.length, which data.train.length follows"
    )
    with pytest.raises(UserError, match=said):
        build.build_experiment(composed("model=pico", "data.train.length=512"))


def test_shortened_llama_preset_matches_the_paper():
    for model in ("smollm2_135m", "llama2_7b"):
        x = build.build_experiment(composed("experiment=shortened_llama", f"model={model}"))
        assert (x.data.calibration.sequences, x.data.calibration.length) == (10, 128)
        assert (x.prune.keep_first, x.prune.keep_last, x.model.quantise) == (4, 2, "none")
        assert (x.heal.rank, x.heal.alpha, x.heal.lr, x.heal.dropout, x.heal.length) == (8, 16, 1e-4, 0.05, 256)
        assert x.eval.keys() == {"loss", "harness", "perplexity", "speed"}
        assert [*x.eval["perplexity"].named] == ["demo"]
        cpt = build.build_experiment(composed("experiment=shortened_llama_cpt", f"model={model}"))
        assert (type(cpt.heal).__name__, cpt.heal.lr, cpt.heal.betas, cpt.heal.weight_decay) == (
            "Full",
            1e-4,
            (0.9, 0.95),
            0.1,
        )
        assert (cpt.prune, cpt.metric, cpt.data.calibration, cpt.eval) == (
            x.prune,
            x.metric,
            x.data.calibration,
            x.eval,
        )


def test_shortened_llama_preset_accepts_overrides():
    other = build.build_experiment(composed("experiment=shortened_llama", "metric=perplexity", "prune.frac=0.35"))
    assert type(other.metric).__name__ == "Perplexity" and other.prune.count(ModelSize(32)) == 11


def test_evaluation_defaults_match_the_paper():
    x = build.build_experiment(composed("eval=[loss,harness,perplexity,speed]"))
    texts = x.eval["perplexity"].named
    assert (x.eval["perplexity"].window, x.eval["perplexity"].bos, x.eval["perplexity"].batch) == (128, "first", 4)
    assert [(name, given["dataset"], given["split"]) for name, given in texts.items()] == [
        ("wikitext2", "Salesforce/wikitext", "test"),
        ("ptb", "ptb-text-only/ptb_text_only", "validation"),
    ]
    speed = x.eval["speed"]
    assert (speed.batches, speed.tokens, speed.warm_up, speed.runs) == ([1, 8, 16, 32, 64, 128, 256], 128, 10, 20)


def test_flexigpt_ablation_drops_the_layers():
    x = build.build_experiment(composed("experiment=flexigpt", "replace=none"))
    assert type(x.replace).__name__ == "NoReplacement" and x.prune.count(ModelSize(30)) == 8
    assert (
        build.build_experiment(composed("experiment=flexigpt", "model=llama2_7b", "model.heal.rank=256")).replace.rank
        == 256
    )


SMALL = (
    "model=pico",
    "device=cpu",
    "data=files",
    "data.validation.sequences=4",
    "heal.steps=2",
    "heal.warmup=1",
    "heal.batch=2",
    "model.heal.length=32",
    "model.heal.rank=2",
)
LITTLE = {
    "gromov": (),
    "shortened_llama_cpt": ("eval=[loss]",),
    "flexigpt": (),
    "shortened_llama": (
        "eval.tasks=[capitals]",
        "eval.limit=4",
        "eval.perplexity.windows=4",
        "eval.speed.tokens=4",
        "eval.speed.prefill_length=16",
    ),
}


@pytest.mark.filterwarnings("ignore")  # Lightning warns of workers, of its own dependencies
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_from_scoring_to_export(name, tmp_path):
    words = (f"outputs={tmp_path}/outputs", f"experiment={name}", *SMALL, *text_files(tmp_path), *LITTLE[name])
    if name == "shortened_llama":  # a text of the test's own, which is part of neither other
        words += (f"+eval.perplexity.texts.demo.paths=[{tmp_path}/corpus.jsonl]",)
    x = build.build_experiment(composed(*words))
    here = open_run(x)
    algorithm.run_experiment(x, here)
    assert here.plan and len(here.plan.drop) == x.prune.count(ModelSize(8))
    names = {"validation/loss"}
    if name == "shortened_llama":
        names |= {"capitals/acc", "demo/perplexity", "speed/tokens_per_second", "speed/latency_s@8"}
        assert set(here.plan.drop) <= {4, 5}
    for stage in ("dense", "pruned", "healed"):
        assert {f"{stage}/{each}" for each in names} <= here.numbers.keys()
    assert (here.folder / "model" / "model.safetensors").exists()
