"""A user error is one clear line with exit status 2, fast, and leaves every finished file unchanged."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from depthcut.cli import help_text, main
from depthcut.cli.composition import Loader
from depthcut.config import build
from depthcut.runtime.errors import UserError
from depthcut.study import runlog
from running import ENVIRONMENT, PICO, ROOT, light, run, start, succeed, text_files

UNWRITABLE = "cannot write"
LOADER = Loader()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Run a study whose files must survive every error below."""
    folder = tmp_path_factory.mktemp("study")
    corpus = text_files(folder)
    record = succeed(f"outputs={folder}/outputs", *PICO, *corpus)
    return folder, corpus, record["folder"]


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in {"run.log", "hashes.json"}]
    return {str(path): path.read_bytes() for path in files if path.suffix != ".lock"}


def complain(*arguments: str, **environment: str) -> str:
    """Return the one error line of a command."""
    return line_of(run(*arguments, **environment))


def line_of(done) -> str:
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0], done.stderr
    assert "Traceback" not in done.stderr
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(("word", "says"), [("reprot", "Did you mean report? "), ("metric", "")])
def test_unknown_command_is_named_with_the_choices(word, says):
    with pytest.raises(UserError) as error:
        main.dispatch([word, "outputs/main"])
    expected = f"{word}: no such command, and not an override, which is KEY=VALUE. {says}Available: mergekit, report"
    assert str(error.value) == expected


CONFIG = [
    ("model=lama2_7b", "model=lama2_7b: no such model. Did you mean llama2_7b? Available: gemma3_270m, "),
    ("metric=angle", "metric=angle: no such metric. Did you mean angular? Available: angular"),
    ("eval=[loss,los]", "eval=los: no such eval. Did you mean loss? Available: documentation, harness, loss"),
    (
        "prune.fraq=0.3",
        "prune.fraq: no such key. Did you mean frac? Available: "
        "cache_bytes, frac, keep_first, keep_last, layers, parameters, unit, weight_bytes",
    ),
    (
        "+prune.extra=1",
        "prune.extra: no such key. Available: "
        "cache_bytes, frac, keep_first, keep_last, layers, parameters, unit, weight_bytes",
    ),
    ("prune.frac=1.5", "prune.frac must be in [0, 1), got 1.5"),
    ("prune.frac=-0.1", "prune.frac must be in [0, 1), got -0.1"),
    ("prune.frac=half", "prune.frac must be a number in [0, 1), got 'half'"),
    ("prune.frac=nan", "prune.frac must be a finite number in [0, 1), got nan"),
    ("prune.frac=50%", "prune.frac must be a number in [0, 1), got '50%'"),
    ("prune.frac=0,0.1", "prune.frac=0,0.1: several values make a sweep, which needs -m"),
    ("prune.frac=[1", "prune.frac=[1: no viable alternative"),
    ("seed=-1", "seed must be at least 0, got -1"),
    ("name=../../etc", "name must be letters, digits, '.', '_' and '-', at most 80, got '../../etc'"),
    ("name=cache", "name must not be cache: OUTPUTS/cache is the cache of all studies"),
    ("metric._target_=os.system", "metric._target_ must name a class of depthcut.metric, got 'os.system'"),
    ("heal=qlora", "heal=qlora needs model.quantise=nf4 or int8, got none"),
    ("prune.layers=2.5", "prune.layers must be a whole number of at least 0, got 2.5"),
    ("prune.unit=half", "prune.unit must be one of layer, attention or mlp, got 'half'"),
    ("stream=often", "stream must be one of auto, always or never, got 'often'"),
    ("eval.limit=0", "eval.harness.limit must be above 0, got 0"),
    ("metric.until=0.2", "metric.until must be in (0.5, 1), got 0.2"),
    ("heal.micro_batch=3", "heal.micro_batch must divide heal.batch (4), got 3"),
    ("heal.micro_batch=some", "heal.micro_batch must be a whole number or auto, got 'some'"),
    ("heal.recompute=-1", "heal.recompute must be at least 0 or auto, none or all, got -1"),
    ("heal.compile=later", "heal.compile must be true or false or auto, got 'later'"),
    ("data=files", "data.calibration.paths is required: data.calibration.paths=..."),
    ("model=local", "model.path is required: model.path=..."),
    ("hydra/launcher=basic", "hydra/launcher=basic only has an effect with -m"),
    ("data.validation.length=1", "data.validation.length must be in [2, 1048576], got 1"),
    ("eval.tasks=[]", "eval.tasks is empty; name a task, or remove harness from eval"),
    ("eval.tasks=[capitals@5]", "eval.tasks: capitals has no examples for few-shot prompts; write capitals"),
]


@pytest.mark.parametrize(("override", "says"), CONFIG, ids=[override for override, _ in CONFIG])
def test_invalid_option_is_refused_immediately(override, says, tmp_path):
    with pytest.raises(UserError) as error:
        build.build_experiment(main.compose_config(LOADER, [f"outputs={tmp_path}", override]))
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("eval.perplexity.stride=0", "eval.perplexity.stride must be above 0, got 0"),
        ("eval.perplexity.windows=-1", "eval.perplexity.windows must be above 0, got -1"),
        ("eval.perplexity.windows=x", "eval.perplexity.windows must be a whole number, got 'x'"),
        ("eval.perplexity.texts=5", "eval.perplexity.texts must be keys and values, got 5"),
        ("data.train.span=0.5", "data.train.span must be a list, got 0.5"),
    ],
)
def test_errors_name_the_expected_value(override, says, tmp_path):
    with pytest.raises(UserError) as error:
        build.build_experiment(
            main.compose_config(LOADER, [f"outputs={tmp_path}", "model=pico", "eval=[perplexity]", override])
        )
    assert str(error.value) == says


@pytest.mark.parametrize("words", [("~eval.loss",), ("eval=[]",), ("stages=[]",), ("stages=[healed]",)])
def test_run_that_would_leave_nothing_is_refused(words, tmp_path):
    read = (f"outputs={tmp_path}", "model=pico", *words, "prune=deepest", "heal=none", "export=none")
    with pytest.raises(UserError, match=r"^the run would produce no result: set export, or have eval measure a stage$"):
        build.build_experiment(main.compose_config(LOADER, read))
    for more in ("export=merged", "prune=block"):  # block: the scores are left
        build.build_experiment(main.compose_config(LOADER, [*read, more]))


@pytest.mark.parametrize("word", ["eval=[]", "stages=[]", "stages=[dense,pruned]"])
def test_healing_that_would_leave_nothing_is_refused(word, tmp_path):
    with pytest.raises(
        UserError, match=r"^the healing would produce no result: set export, or have eval measure stages="
    ):
        build.build_experiment(main.compose_config(LOADER, [f"outputs={tmp_path}", "heal=lora", word, "export=none"]))


@pytest.mark.parametrize(
    "words", [("prune.frac=1.5",), ("-m", "heal=lora", "heal.stepz=1,2"), ("+hydra.x=1",), ("--foo",)]
)
def test_user_errors_exit_2_before_heavy_imports(words, tmp_path):
    assert line_of(light(*words, f"outputs={tmp_path}"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("metric=taylor", "model.quantise=nf4", "heal=none"),
            "metric=taylor needs model.quantise=none, got nf4",
        ),
        (
            ("metric=taylor", "prune=greedy"),
            "prune=greedy rescores the remaining layers, which metric=taylor cannot; choose another metric, such as kl",
        ),
        (("prune=plan", "prune.path=no/plan.json"), "no plan at no/plan.json"),
        (
            ("prune=evolution",),
            "prune=evolution needs a metric that can score any cut, such as kl; metric=angular",
        ),
        (("heal=loraprune", "heal.frac=2"), "heal.frac must be in [0, 1), got 2"),
        (
            ("heal.steps=3", "heal.warmup=3"),
            "heal.warmup must be below heal.steps (3), or a fraction of them such as 0.05, got 3",
        ),
        (("metric=linearity", "prune.unit=mlp"), "metric=linearity cannot score prune.unit=mlp; it can score: layer"),
        (("metric=taylor", "stream=always"), "stream=always: metric=taylor needs the whole model in memory"),
        (
            ("metric.until=0.9", "prune=lowest"),
            "metric.until stops once one block is certain: it needs prune=block",
        ),
        (("prune.layers=2", "prune.parameters=1e6"), "prune.layers and prune.parameters are both set; set only one"),
        (
            ("prune.layers=8",),
            "plan keeps 0 of 8 layers; the last layer must stay. Lower prune.layers (now 8; at",
        ),
        (("prune.parameters=10",), "prune.parameters=10 cannot be met: "),
        (("prune.cache_bytes=1",), "prune.cache_bytes=1 cannot be met: "),
        (("metric=task", "metric.tasks=[mmlu]"), "metric.tasks: no local set 'mmlu'; available: capitals, topics"),
    ],
)
def test_incompatible_choices_are_refused(overrides, says, tmp_path):
    assert complain(f"outputs={tmp_path}", "model=pico", *overrides).startswith(says)


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ([[2, 5], [4, 6]], "spans [2, 5) and [4, 6) overlap"),
        ([[6, 9]], "span [6, 9)"),
        ([[5, 3]], "span [5, 3)"),
    ],
)
def test_invalid_spans_are_refused(drop, says, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"format": 2, "depth": 8, "unit": "layer", "drop": drop, "model": "", "notes": {}}))
    line = complain(f"outputs={tmp_path}/outputs", "model=pico", "prune=plan", f"prune.path={path}")
    assert line.startswith(f"{path}: {says}")


def test_deleted_current_folder_is_reported():
    script = f'cd "$(mktemp -d)" && rmdir "$PWD" && exec {sys.executable} {ROOT}/run.py model=pico'
    done = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert line_of(done) == "the current folder was deleted; change to an existing one"


def test_version_and_help_on_a_choice():
    assert run("--version").stdout == f"depthcut {version('depthcut')}\n"
    assert "  heal=lora: LoRA healing on a 16- or 32-bit base" in help_text.render_help(["heal"])
    assert "steps: 64" in help_text.render_help(["heal=lora"]) and "# sequences per step" in help_text.render_help(
        ["heal=lora"]
    )
    with pytest.raises(UserError, match=r"^heal=lara: no such heal. Did you mean lora\?"):
        help_text.render_help(["heal=lara"])


def test_help_is_fast():
    done = light("--help")
    assert (
        done.returncode == 0
        and "llama2_70b" in done.stdout
        and "metric: angular (default), block_influence" in done.stdout
    )


def test_plan_that_keeps_no_layer_is_refused(study):
    folder, corpus, _ = study
    line = complain(f"outputs={folder}/outputs", *PICO, *corpus, "prune=deepest", "prune.frac=0.99")
    assert line.startswith("plan keeps 0 of 8 layers; the last layer must stay. Lower prune.frac (now 0.99; at most ")


TEXTS = {
    "missing.txt": (None, "no file at "),
    "empty.txt": (b"", "contains no text"),
    "latin.txt": ("caf\xe9".encode("latin-1"), "is not UTF-8: byte 3 is 0xe9"),
    "short.txt": (b"Hello.", "too short"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_unusable_text_is_refused(study, tmp_path, name):
    folder, corpus, _ = study
    content, says = TEXTS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = complain(
        f"outputs={folder}/outputs",
        *PICO,
        *corpus,
        f"data.train.paths=[{tmp_path / name}]",
        "data.train.span=[0.0,1.0]",
    )
    assert says in line, line


def test_same_text_in_two_parts_is_refused(study):
    folder, corpus, _ = study
    line = complain(f"outputs={folder}/outputs", *PICO, *corpus, "data.train.span=[0.0,1.0]", "heal.steps=300")
    assert "train" in line and "share" in line


def test_truncated_shard_is_reported(study, tmp_path):
    _, corpus, point = study
    subprocess.run(["cp", "-r", str(point / "model"), str(tmp_path / "model")], check=True)
    shard = tmp_path / "model" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    line = complain(
        f"outputs={tmp_path}/outputs", *PICO[1:], *corpus, "model=local", f"model.path={tmp_path / 'model'}"
    )
    assert "model.safetensors" in line


def test_missing_gpu_is_reported(study):
    folder, corpus, _ = study
    line = complain(f"outputs={folder}/outputs", *PICO, *corpus, "device=cuda", "prune.frac=0.5")
    assert line.startswith("device=cuda: torch finds no GPU.")


def test_missing_network_is_reported(tmp_path):
    line = complain(
        f"outputs={tmp_path}",
        "model=llama2_7b",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="0",
        HF_HOME=str(tmp_path),
    )
    assert "meta-llama/Llama-2-7b-hf" in line


def test_hub_retries_are_silent():
    """They take 23 seconds and 12 lines; the error says the rest."""
    retries = logging.getLogger("huggingface_hub.utils._http")
    assert retries.isEnabledFor(logging.WARNING)
    with runlog.quiet_libraries():
        assert not retries.isEnabledFor(logging.WARNING)


def test_installed_kernels_are_not_fetched(tmp_path):
    """bitsandbytes would do so on a CPU with AVX512-BF16, as soon as it is imported."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('kernels were asked for')")
    script = "import depthcut.cli.main, bitsandbytes\nfrom transformers.utils import is_kernels_available as there\n"
    paths = f"{tmp_path}:{ENVIRONMENT.get('PYTHONPATH', '')}:{ROOT}/src"
    call = [sys.executable, "-c", f"{script}assert not there()"]
    done = subprocess.run(call, env={**ENVIRONMENT, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("task", "says"),
    [("captials", "no task 'captials'. Did you mean capitals?"), ("arc_easy", "could not get the data of")],
)
def test_unobtainable_task_is_reported(study, task, says):
    folder, corpus, point = study
    (point / "failure.json").unlink(missing_ok=True)
    line = complain(f"outputs={folder}/outputs", *PICO, *corpus, "eval=[harness]", f"eval.tasks=[{task}]")
    assert line.startswith("eval.tasks: ") and says in line and "capitals" in line
    assert (point / "failure.json").exists() == (task == "arc_easy")


def test_unwritable_outputs_are_reported(study):
    _, corpus, _ = study
    assert complain("outputs=/dev/null/outputs", *PICO, *corpus).startswith(UNWRITABLE)


@pytest.fixture
def disk(tmp_path):
    """Mount a small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_read_only_disk_is_reported(study, disk):
    _, corpus, _ = study
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert complain(f"outputs={disk}/outputs", *PICO, *corpus).startswith(UNWRITABLE)


@pytest.mark.parametrize("kilobytes", [8, 40, 300])
def test_full_disk_is_reported(study, disk, kilobytes):
    """It fills up while a model, an adapter or a record is written; what was finished before is left whole."""
    folder, corpus, point = study
    (disk / "outputs" / "main").mkdir(parents=True)
    for name in ("cache", f"main/{point.name}"):
        subprocess.run(["cp", "-r", f"{folder}/outputs/{name}", str((disk / "outputs" / name).parent)], check=True)
    before = snapshot(disk / "outputs" / "main")
    room = shutil.disk_usage(disk).free - kilobytes * 1024
    (disk / "ballast").write_bytes(b"\0" * room)
    line = complain(f"outputs={disk}/outputs", *PICO, *corpus, "seed=1", "model.heal.rank=32")
    assert line.startswith("the disk is full"), line
    assert before.items() <= snapshot(disk / "outputs" / "main").items()


def test_disk_full_during_healing_is_reported_once(study, disk):
    """The checkpoint, the curve and the log all meet it."""
    _, corpus, _ = study
    words = (*PICO, *corpus, "heal.steps=400", "heal.save_every=1", "stages=[healed]", "prune=deepest")
    process = start(f"outputs={disk}/outputs", *words)
    while not list(disk.glob("outputs/main/*/heal/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    (disk / "ballast").write_bytes(b"\0" * shutil.disk_usage(disk).free)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Logging error" not in err and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("error: the disk is full")


def test_finished_files_are_intact(study):
    """Runs last in this file: the study above is as it was, and its record is still found."""
    folder, corpus, point = study
    (point / "failure.json").unlink(missing_ok=True)
    before = snapshot(point)
    again = run(f"outputs={folder}/outputs", *PICO, *corpus)
    assert again.returncode == 0 and "already done" in again.stderr
    assert snapshot(point) == before


def test_missing_sublayers_are_refused_before_reading_weights(tmp_path):
    from pico import pico

    pico("opt").save_pretrained(tmp_path / "opt")
    line = complain(f"outputs={tmp_path}/outputs", "model=local", f"model.path={tmp_path}/opt", "prune.unit=mlp")
    assert line.startswith("OPTDecoderLayer has no separate mlp (self_attn, ")
    assert not (tmp_path / "outputs/main").exists()


@pytest.mark.parametrize(
    ("content", "more", "says"),
    [
        (None, [], "--config: no file at "),
        ("[1]", [], "point.yaml is not a config (expected an object, got list); correct the file"),
        ("a: [", [], "point.yaml is not a config (while parsing a flow"),
        ("hydra: {x: 1}", [], "hydra: no such key"),
        ("hydra: 3", [], "hydra: no such key"),
        ("hydra: {launcher: {x: 1}}", [], "hydra: no such key"),
        ("hydra: {x: '${oc.env:HOME}'}", [], "hydra.x must not call a resolver"),
        ("{name: main}", ["seed=1"], "--config FILE accepts no overrides"),
        ("{nme: main}", [], "nme"),
    ],
)
def test_invalid_stored_config_is_refused(tmp_path, content, more, says):
    if content:
        (tmp_path / "point.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        main.run_command(print, ["--config", str(tmp_path / "point.yaml"), *more])
    assert says in str(error.value) and "\n" not in str(error.value)
