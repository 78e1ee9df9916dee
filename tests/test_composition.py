"""Invalid configs are refused in one line before Hydra, or anything else, acts on them."""

import pytest
import yaml

from composing import ROOT
from depthcut.cli import main
from depthcut.cli.composition import Loader, without_hydra
from depthcut.cli.expansion import expand_sweep
from depthcut.config import build, experiment, methods
from depthcut.runtime.errors import UserError
from depthcut.study.slurm.job import JobRequest

LOADER = Loader()
PICO = ("model=pico", "eval=[loss,harness]")


def read(*words: str, loader: Loader = LOADER) -> experiment.Experiment:
    return build.build_experiment(main.compose_config(loader, [*PICO, *words]))


def refused(*words: str, loader: Loader = LOADER) -> str:
    with pytest.raises(UserError) as error:
        read(*words, loader=loader)
    return str(error.value)


FOREIGN = [  # once, two created a folder and a file, the third was instantiated, only Hydra refused the fourth
    ("model", "depthcut.model.smollm2.TemporaryDirectory", {"dir": "made"}),
    ("model", "depthcut.model.smollm2.zipfile.ZipFile", {"file": "made", "mode": "w"}),
    ("log", "depthcut.log.wandb.Path", {}),
    ("model", "depthcut.model.smollm2.wheels.subprocess.Popen", {"args": ["touch", "made"]}),
    ("eval.loss", "depthcut.eval.loss.Eval", {}),
    ("metric", "depthcut.metric.Metric", {}),
    ("metric", "depthcut.metric.angular.Nothing", {}),
    ("metric", "depthcut.metric.nosuch.Angular", {}),
    ("metric", "depthcut.prune.block.Block", {}),
    ("metric", "depthcut.metric.angular.__class__", {}),
    ("data.train", "depthcut.data.files.Source", {}),
]


@pytest.mark.parametrize(("path", "target", "options"), FOREIGN, ids=[target for _, target, _ in FOREIGN])
def test_target_outside_its_group_is_refused(path, target, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^{path}\._target_"):
        methods.build_method(path, {"_target_": target, **options})
    assert not list(tmp_path.iterdir())


def test_target_inside_an_option_is_refused():
    assert refused("+heal.rank._target_=os.getcwd").startswith("heal.rank")
    line = refused("eval=[perplexity]", "+eval.perplexity.texts.x={a: {_target_: os.getcwd}}")
    assert line == "eval.perplexity.texts.x.a._target_ is not allowed: an option is a plain value"


@pytest.mark.parametrize(
    "word",
    [
        "+hydra.callbacks.x._target_=torch.hub.load",
        "hydra.searchpath=[file:///tmp]",
        "+hydra.x=1",
        "hydra.job.env_set={PYTHONPATH: /tmp}",
        "hydra/job_logging=default",
        "hydra.launcher._target_=os.system",
        "hydra={}",
        "+experiment@hydra.callbacks=gromov",
    ],
)
def test_only_launcher_settings_of_hydra_are_accepted(word):
    assert "only hydra/launcher and hydra.launcher.* can" in refused(word)


def test_experiment_must_not_set_hydra_targets(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, text in {
        "callback": "hydra: {callbacks: {x: {_target_: os.system}}}",
        "logging": "hydra: {job_logging: {handlers: {x: {(): os.system}}}}",
        "shell": "hydra: {launcher: {setup: [touch made]}}",
        "key": "experiment: {x: 1}",
        "typo": "eval: {limt: 5}",
        "off": "eval: {loss: off}",
        "other": "eval: {speed: {batchs: [1]}}",
    }.items():
        (tmp_path / f"experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    loader = Loader(str(tmp_path))
    for name in ("callback", "logging", "shell"):
        assert refused(f"experiment={name}", loader=loader).startswith(f"experiment/{name}.yaml must not set hydra.*")
    assert refused("experiment=key", loader=loader).startswith("experiment: no such key")
    assert refused("experiment=typo", loader=loader).startswith("eval.limt: no such key. Did you mean limit?")
    assert refused("experiment=off", loader=loader).startswith("eval.loss")
    assert refused("experiment=other", loader=loader).startswith(
        "eval.speed.batchs: no such key. Did you mean batches?"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["+composed=1"], "composed: no such key"),
        (["nosuch=1"], "nosuch: no such key. Available: data, device, eval, export, heal, keep_weights, log, metric"),
        (["+eval.limt=5"], "eval.limt: no such key. Did you mean limit?"),
        (["eval.loss=off"], "eval.loss"),
        (["~eval.harness._target_"], "eval.harness"),
        (["eval=[loss]", "+eval.limit=5"], "eval.limit has no effect: no chosen evaluation reads eval.limit"),
        (["experiment=shortened_llama", "eval=[loss]", "eval.speed.runs=2"], "eval.speed.runs has no effect"),
        (["+eval.note=${oc.env:HOME}"], "eval.note must not call a resolver"),
        (["model.separator='${oc.${name}:HOME}'"], "model.separator must not call a resolver"),
        (["+eval.wandb_api_key=abc"], "eval.wandb_api_key looks like a secret"),
        (["name=${outputs}", "outputs=${name}"], ""),
        (["seed=4294967296"], "seed must be below 4294967296"),
        (["model.seed=1e22"], "model.seed must be"),
        (["heal.rank=1000000000"], "heal.rank must be in [1, 65536], got 1000000000"),
        (["heal.lr=1e300"], "heal.lr must be a number of at most 1e+15"),
        (["prune.frac=" + "9" * 5000], "prune.frac=9"),
        (["name=" + "x" * 5000], "name must be letters, digits"),
        (["name=cache"], "name must not be cache"),
        (["heal.steps=3", "heal.warmup=1.5"], "heal.warmup must be a whole number of at least 0, got 1.5"),
        (["heal=none", "heal.steps=3"], "heal.steps: no such key. heal=none has no options"),
    ],
)
def test_invalid_config_fails_in_one_short_line(words, says):
    line = refused(*words)
    assert line.startswith(says) and len(line) < 600, line


def test_secrets_are_not_repeated():
    assert "abc" not in refused("+eval.wandb_api_key=abc")


def test_config_files_may_set_options_of_unselected_evaluations():
    assert read("experiment=shortened_llama", "eval=[loss]").eval.keys() == {"loss"}
    assert read("eval=[loss]", "model=llama2_7b").eval.keys() == {"loss"}


@pytest.mark.parametrize(("steps", "warmup", "found"), [(64, 0.0625, 4), (4, 0.0625, 0), (20, 0.1, 2), (4, 3, 3)])
def test_warmup_is_steps_or_a_fraction(steps, warmup, found):
    assert read(f"heal.steps={steps}", f"heal.warmup={warmup}").heal.warmup == found  # type: ignore[attr-defined]
    assert read(f"heal.steps={steps}").heal.warmup == round(steps / 16)  # type: ignore[attr-defined]


def expanded(*words: str) -> tuple[list[str], list[str]]:
    loader = Loader()
    parsed = loader.parse(words)
    master = main.compose_launcher_config(loader, parsed)
    points, notes = expand_sweep(loader, master, parsed)
    for point in points:
        build.build_experiment(without_hydra(loader.load_sweep_config(master, list(point))))
    return [" ".join(point) for point in points], notes


def test_swept_option_applies_where_the_choice_has_it():
    assert expanded("model=pico", "heal=none,lora", "heal.steps=10") == (
        ["model=pico heal=none", "model=pico heal=lora heal.steps=10"],
        ["heal.steps is not an option of heal=none and is ignored there"],
    )
    points, notes = expanded("model=pico", "replace=none,mean", "metric=angular,random", "metric.batch=2,4")
    assert len(points) == 6 and notes == ["metric.batch is not an option of metric=random and is ignored there"]
    points, notes = expanded("model=pico", "experiment=gromov,loraprune", "heal.ratio=0.2")
    assert notes == ["heal.ratio is not an option of experiment=gromov and is ignored there"]
    points, notes = expanded("model=pico", "eval=[loss],[loss,harness]", "eval.limit=20")
    assert notes == ["eval.limit is not an option of eval=[loss] and is ignored there"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["heal=none,lora", "heal.stepz=10"], "heal.stepz: no such key. Did you mean steps?"),
        (["prune.frac=0,0.5", "heal=none", "heal.steps=10"], "heal.steps: no such key. heal=none has no options"),
        (["seed=range(0,1000000000)"], "this sweep has 1,000,000,000 points, at most 100,000"),
        (["seed=range(0,1000)", "prune.frac=range(0,1,0.001)"], "this sweep has 1,000,000 points"),
        (["prune.frac=range(0,1,0)"], "prune.frac=range(0,1,0): a range needs"),
        (["prune.frac=range(0,inf,0.1)"], "prune.frac=range(0,inf,0.1): a range needs"),
        (["seed=range(5,5)"], "seed=range(5,5): expected at least one value, got none"),
        (["seed=interval(0,1)"], "seed=interval(0,1): expected values to sweep over"),
        (["model=pico,nosuch"], "model=nosuch: no such model"),
    ],
)
def test_invalid_sweep_is_refused_before_expansion(words, says):
    with pytest.raises(UserError) as error:
        expanded("model=pico", *words)
    assert str(error.value).startswith(says)


SLURM = yaml.safe_load((ROOT / "conf/hydra/launcher/slurm.yaml").read_text())


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("partition", "cpu\n#SBATCH --mail-user=x", "partition must be one line of text"),
        ("setup", ["module load a\nb"], "setup.0 must be one line of text"),
        ("additional_parameters", {"a\nb": 1}, "additional_parameters"),
        ("additional_parameters", {"a": "x\ny"}, "additional_parameters.a must be one line of text"),
        ("mem_gb", 1e-9, "mem_gb must be in [0.001, 100000], got 1e-09"),
        ("timeout_min", 10**30, "timeout_min must be in [1, 1000000], got 1"),
    ],
)
def test_slurm_options_are_single_line_and_bounded(option, value, says):
    options = {key: given for key, given in SLURM.items() if not key.startswith("_")}
    with pytest.raises(UserError) as error:
        methods.construct_validated("hydra.launcher", JobRequest, {**options, option: value})
    assert str(error.value).startswith(f"hydra.launcher.{says}")
