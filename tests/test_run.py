"""The main job from the command line: it finishes, is not repeated, survives a kill, exports a loadable model."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depthcut.report import study
from running import (
    AGAIN,
    ANEW,
    ENVIRONMENT,
    PICO,
    ROOT,
    UNHEALED,
    kill_in_healing,
    light,
    run,
    start,
    succeed,
    text_files,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    outputs = tmp_path_factory.mktemp("outputs")
    return succeed(f"outputs={outputs}", *PICO, *corpus, **ANEW)


def test_record_describes_the_run(finished):
    assert finished["plan"]["depth"] == 8 and finished["fraction"] == 0.25
    assert finished["healed/validation/loss"] < finished["pruned/validation/loss"]
    for stage in ("dense", "pruned", "healed"):
        assert finished[f"{stage}/validation/loss_stderr"] > 0
    assert finished["config"]["model"]["layers"] == 8
    assert finished["versions"]["torch"] and finished["device"]
    assert finished["bytes/read"] > 0 and finished["seconds/heal"] > 0
    names = {path.name for path in finished["folder"].iterdir() if path.suffix != ".lock"}
    assert names == {"config.yaml", "run.log", "plan.json", "heal.csv", "record.json", "model", "adapter"}


def test_log_reports_the_healing(finished):
    log = (finished["folder"] / "run.log").read_text()
    assert re.search(r"healing: .* gradient checkpointing: no layer;", log)
    assert re.search(r"healed: 6 steps, 1,536 tokens, \d+ s, loss \d\.\d{3}, [\d,]+ tokens/s", log)


def test_curve_has_one_row_per_step(finished):
    rows = (finished["folder"] / "heal.csv").read_text().splitlines()
    assert rows[0].startswith("step,tokens,seconds,loss,lr")
    assert [int(row.split(",")[0]) for row in rows[1:]] == [1, 2, 3, 4, 5, 6]
    assert [int(row.split(",")[1]) for row in rows[1:]] == [256 * step for step in range(1, 7)]
    assert all(0 < float(row.split(",")[5]) < 100 for row in rows[1:])


def test_second_run_is_done_already(finished, corpus):
    outputs = finished["folder"].parents[1]
    again = light(f"outputs={outputs}", *PICO, *corpus)
    assert again.returncode == 0 and "already done" in again.stderr
    assert "validation/loss" in again.stdout


def test_added_task_or_export_reuses_the_adapter(finished, corpus):
    """Another study finds the shared parts too."""
    outputs = finished["folder"].parents[1]
    adapter = finished["folder"] / "adapter" / "adapter_model.safetensors"
    stamp = adapter.stat().st_mtime_ns
    more = ("export=adapter", "eval=[loss,harness]", "eval.tasks=[capitals]", "eval.limit=4")
    again = run(f"outputs={outputs}", *PICO, *corpus, *more, **AGAIN)
    assert again.returncode == 0, again.stderr
    assert "healing" not in again.stderr and adapter.stat().st_mtime_ns == stamp
    record = json.loads((finished["folder"] / "record.json").read_text())
    assert record["exported"] == ["adapter", "merged"] and 0 <= record["healed/capitals/acc"] <= 1
    assert record["healed/validation/loss"] == finished["healed/validation/loss"]
    other = run(
        f"outputs={outputs}", *UNHEALED, *corpus, "name=other", "heal=none", "stages=[dense,pruned]", "export=none"
    )
    assert other.returncode == 0 and "validation loss:" not in other.stderr
    record = json.loads(next(Path(outputs).glob("other/*/record.json")).read_text())
    assert record["pruned/validation/loss"] == finished["pruned/validation/loss"]
    assert not any(key.startswith("healed/") for key in record)


LOADS = """
import sys
sys.modules["depthcut"] = None                                     # as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model, found = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, output_loading_info=True)
assert not found["missing_keys"] and not found["unexpected_keys"], found
assert len(model.model.layers) == model.config.num_hidden_layers == 6
ids = tokenizer("The cat sees the dog.", return_tensors="pt").input_ids
with torch.no_grad():
    print(model(ids, labels=ids).loss.item())
    settings = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    greedy = [model.generate(ids, **settings, use_cache=cache).tolist() for cache in (True, False)]
assert greedy[0] == greedy[1]
"""


def test_exported_model_loads_without_depthcut(finished):
    folder = finished["folder"] / "model"
    call = [sys.executable, "-W", "ignore", "-c", LOADS, str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < finished["pruned/validation/loss"]
    card = (folder / "README.md").read_text()
    assert finished["plan"]["words"] in card and "| measured | dense | pruned | healed |" in card
    assert f"{finished['healed/validation/loss']:.3f}" in card


def test_generation_stops_at_the_training_separator(tmp_path, corpus):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = (*UNHEALED, *corpus, "prune=deepest", "stages=[]", "model.separator=A", "heal.steps=1", "heal.warmup=0")
    folder = succeed(f"outputs={tmp_path}", *words)["folder"] / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids, separator = tokenizer("The cat", return_tensors="pt").input_ids, tokenizer.convert_tokens_to_ids("A")
    assert set(model.generation_config.eos_token_id) == {tokenizer.eos_token_id, separator}
    written = model.generate(ids, max_new_tokens=8, prefix_allowed_tokens_fn=lambda *_: [separator])
    assert written[0, ids.shape[1] :].tolist() == [separator]


def test_adapter_card_and_config_name_base_and_cut(finished):
    adapter = finished["folder"] / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == f"pico, {finished['plan']['words']}"
    card = (adapter / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and f"# {base}" in card and "More Information" not in card


def test_report_prints_the_study_and_writes_csv(finished):
    study = finished["folder"].parent
    call = [sys.executable, "-m", "depthcut.report", str(study)]
    done = subprocess.run(call, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 finished" in done.stdout
    rows = (study / "table.csv").read_text().splitlines()
    assert len(rows) == 2 and "healed/validation/loss" in rows[0]
    missing = subprocess.run(
        [*call[:-1], "outputs/no-such"], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=False
    )
    assert missing.returncode == 2 and missing.stderr.startswith("error: no study at outputs/no-such")


def test_sweep_is_one_study(tmp_path, corpus):
    done = run(
        "-m",
        f"outputs={tmp_path}",
        *UNHEALED,
        *corpus,
        "heal=none",
        "export=none",
        "prune=block,deepest",
        "prune.frac=0,0.5",
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("main/*/record.json")]
    assert len(records) == 4
    assert len({record["dense/validation/loss"] for record in records}) == 1
    whole = [record for record in records if record["fraction"] == 0]
    assert len(whole) == 2 and all(each["pruned/validation/loss"] == each["dense/validation/loss"] for each in whole)


def test_deepest_never_reads_the_dropped_layers(tmp_path, finished, corpus):
    """They are NaN in the file, so reading one of them gives a loss of NaN."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(finished["folder"] / "model", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    dropped = ("model.layers.3.", "model.layers.4.")
    save_file(
        {n: t.fill_(float("nan")) if n.startswith(dropped) else t for n, t in tensors.items()},
        weights,
        {"format": "pt"},
    )
    arguments = (
        "model=local",
        f"model.path={tmp_path}/model",
        "heal=none",
        "prune=deepest",
        "prune.frac=0.33",
        "stages=[pruned]",
    )
    record = succeed(f"outputs={tmp_path}/out", *UNHEALED[1:], *corpus, *arguments, "export=none")
    assert record["plan"]["drop"] == [[3, 5]]
    assert 0 < record["pruned/validation/loss"] < 20
    kept = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith(dropped))
    assert record["bytes/read"] == kept


def test_non_finite_loss_is_recorded_as_diverged(tmp_path, finished, corpus):
    from safetensors.torch import load_file, save_file

    shutil.copytree(finished["folder"] / "model", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, weights, {"format": "pt"})
    base = ("model=local", f"model.path={tmp_path}/model", "heal=none", "prune=deepest", "export=none")
    arguments = (f"outputs={tmp_path}/out", *UNHEALED[1:], *corpus, *base)
    dense = run(*arguments)
    assert dense.returncode == 2 and dense.stderr.count("error: ") == 1
    assert "error: eval.loss: the dense model's validation/loss is not finite" in dense.stderr
    pruned = run(*arguments, "stages=[pruned]")
    assert pruned.returncode == 0, pruned.stderr
    assert "not finite" in pruned.stdout and "warning: the pruned model's validation/loss" in pruned.stdout
    record = json.loads(next(tmp_path.glob("out/main/*/record.json")).read_text())
    assert record["status"] == "diverged" and record["pruned/validation/loss_finite"] == 0
    assert "pruned/validation/loss" not in record
    read = study.read_studies([tmp_path / "out/main"])
    assert read.words == "1 point: 1 done, 0 failed, 0 running, 0 left; 1 diverged (a loss is not finite)"


HEAL = ("heal.steps=12", "heal.save_every=2", "heal.dropout=0.2", "heal.batch=4", "heal.micro_batch=2", "export=none")


def adapter_of(outputs: Path) -> bytes:
    return next(outputs.glob("main/*/adapter/adapter_model.safetensors")).read_bytes()


@pytest.mark.parametrize(
    ("base", "before", "after"),
    [
        ((), ANEW, AGAIN),
        (("heal=qlora", "model.quantise=nf4", "model.hidden=64", "heal.length=64", "heal.warmup=1"), {}, {}),
    ],
    ids=["lora", "qlora"],
)
def test_run_killed_in_healing_ends_with_same_weights(tmp_path, corpus, base, before, after):
    arguments = (*PICO, *corpus, *base, *HEAL)
    undisturbed = succeed(f"outputs={tmp_path / 'a'}", *arguments)
    kill_in_healing(tmp_path / "b", *arguments, **before)
    assert not list(tmp_path.glob("b/main/*/record.json")) and not list(tmp_path.glob("b/main/*/adapter"))
    (point,) = (path for path in tmp_path.glob("b/main/*") if path.is_dir())
    (point / ".heal.csv.1.tmp").write_text("what a kill in the middle of a write leaves")
    resumed = succeed(f"outputs={tmp_path / 'b'}", *arguments, **after)
    log = (resumed["folder"] / "run.log").read_text()
    assert "healing resumes at step" in log
    assert adapter_of(tmp_path / "a") == adapter_of(tmp_path / "b")
    assert resumed["healed/validation/loss"] == undisturbed["healed/validation/loss"]
    curves = [
        [row.split(",")[:4:3] for row in (each["folder"] / "heal.csv").read_text().splitlines()]
        for each in (undisturbed, resumed)
    ]
    assert curves[0] == curves[1]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize(("signalled", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_interrupt_keeps_checkpoint_and_finishes_nothing(tmp_path, corpus, signalled, times):
    process = start(f"outputs={tmp_path}", *PICO, *corpus, *HEAL[1:], "heal.steps=2000")
    while not list(tmp_path.glob("main/*/heal/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    for _ in range(times):
        process.send_signal(signalled)
        time.sleep(0.1 * (times - 1))
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    if signalled == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in err, err
    if signalled == signal.SIGINT and times == 1:
        assert err.splitlines()[-1] == "stopped: run the same command again to resume"
    assert list(tmp_path.glob("main/*/heal/last.ckpt"))
    assert not list(tmp_path.glob("main/*/adapter")) and not list(tmp_path.glob("main/*/record.json"))


def test_partial_scores_are_cached_per_block_size(tmp_path):
    """Another size of block is scored again; another export is not."""
    corpus = text_files(tmp_path)
    base = (f"outputs={tmp_path}/outputs", *UNHEALED, *corpus, "heal=none", "metric.until=0.6")
    one = succeed(*base, "prune.layers=2")
    scores = tmp_path / "outputs/cache/scores"
    assert len(list(scores.glob("*/scores.json"))) == 1
    assert sum(one["plan"]["notes"]["wins"].values()) == pytest.approx(1)
    succeed(*base, "prune.layers=3")
    assert len(list(scores.glob("*/scores.json"))) == 2


def test_streamed_run_has_the_same_digest_and_plan(tmp_path):
    corpus = text_files(tmp_path)
    base = (*UNHEALED, *corpus, "heal=none", "metric=kl", "prune=greedy", "export=none")
    whole, streamed = (succeed(f"outputs={tmp_path}/{way}", *base, f"stream={way}") for way in ("never", "always"))
    assert whole["digest"] == streamed["digest"]
    assert whole["plan"] == streamed["plan"]


def test_run_without_some_mlps_heals_exports_and_loads(tmp_path):
    import depthcut

    corpus = text_files(tmp_path)
    record = succeed(f"outputs={tmp_path}/outputs", *PICO, *corpus, "prune.unit=mlp", "metric=kl", "prune=lowest")
    assert record["plan"]["unit"] == "mlp" and "the MLP of layer" in record["plan"]["words"]
    assert record["healed/validation/loss"] < record["pruned/validation/loss"]
    model = depthcut.load(record["folder"] / "model", dtype="float32")
    there = [index for index, layer in enumerate(model.model.layers) if list(layer.mlp.parameters())]
    dropped = [index for start, stop in record["plan"]["drop"] for index in range(start, stop)]
    assert sorted({*there, *dropped}) == list(range(8)) and not {*there} & {*dropped}


def test_one_of_sixteen_processes_computes_the_point(tmp_path):
    """The others wait, and find it done."""
    corpus = text_files(tmp_path)
    processes = [start(f"outputs={tmp_path}/outputs", *UNHEALED, *corpus, "heal=none") for _ in range(16)]
    said = []
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        said.append("already done" in err)
    assert sorted(said) == [False] + [True] * 15
    assert len(list(tmp_path.glob("outputs/main/*/record.json"))) == 1
