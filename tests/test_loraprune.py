"""LoRAPrune end to end: it prunes while it heals, resumes after a kill, and exports a narrower model."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import depthcut
from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules
from depthcut.heal.training.fit import fit_model
from depthcut.heal.width import criterion, matched, schedule, selection
from depthcut.heal.width.pruning import Pruning
from depthcut.model.decoder import layers
from depthcut.model.surgery.width import slicing
from depthcut.model.surgery.width.widths import WIDTHS_FILE, Widths
from depthcut.runtime.errors import UserError
from depthcut.study import preflight
from depthcut.study.run import Run
from gaps import DEPTH, model_of, opened
from running import ENVIRONMENT, run_torchrun, start, succeed, text_files

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of SLURM, of workers, of its own dependencies

KNOBS = (
    "experiment=loraprune",
    "model.heal.rank=4",
    "model.heal.lr=1e-2",
    "heal.steps=20",
    "heal.warmup=1",
    "heal.batch=4",
    "heal.micro_batch=4",
    "heal.prune_every=3",
    "heal.save_every=3",
    "export=none",
)


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def narrowing_run(folder: Path, *knobs: str) -> Run:
    here = opened(folder, model_of("llama"), *KNOBS, *knobs)
    here.decide(Plan(DEPTH, ()))
    return here


class Stop(L.Callback):
    """Stop the run between the micro-batches of a step."""

    def __init__(self, step: int) -> None:
        self.last = step

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.last:
            raise RuntimeError("stopped")


def trained(here: Run, *callbacks: L.Callback) -> tuple[Any, Pruning]:
    """Heal and prune; return the model at full width, and its masks."""
    recipe: Any = here.experiment.heal
    L.seed_everything(0, verbose=False)
    model = adapter_modules.add_adapters(here.dense.load(), recipe, Plan(DEPTH, ()))
    pruning = Pruning(model, recipe)
    fit_model(model, recipe, here, callbacks=[pruning, *callbacks])
    return model, pruning


def adapter_factors(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def test_zero_ratio_equals_lora(folder):
    narrowing = narrowing_run(folder, "heal.ratio=0")
    model, pruning = trained(narrowing)
    assert not pruning.widths().narrowed_groups()
    plain = narrowing_run(folder, "heal.ratio=0", "name=plain")
    L.seed_everything(0, verbose=False)
    recipe: Any = plain.experiment.heal
    healed = adapter_modules.add_adapters(plain.dense.load(), recipe, Plan(DEPTH, ()))
    fit_model(healed, recipe, plain)
    for name, half in adapter_factors(model).items():
        assert torch.equal(half, adapter_factors(healed)[name]), name


@pytest.mark.parametrize(("ratio", "how"), [(0.5, "uniform"), (0.25, "global")])
def test_selection_follows_from_gradients_of_each_step(folder, ratio, how):
    """A second computation of averages, schedule and selection, from gradients that a callback recorded."""
    here = narrowing_run(
        folder, f"heal.ratio={ratio}", f"heal.selection={how}", "heal.keep_first=0.2", "heal.clip=0.01"
    )
    seen: list[dict[Any, torch.Tensor]] = []

    class Look(L.Callback):
        def on_after_backward(self, *_) -> None:
            stack = layers.layer_list(model)
            seen.append(
                {place: criterion.group_importance(stack[place[0]], each) for place, each in watched.free.items()}
            )

    recipe: Any = here.experiment.heal
    L.seed_everything(0, verbose=False)
    model = adapter_modules.add_adapters(here.dense.load(), recipe, Plan(DEPTH, ()))
    watched = Pruning(model, recipe)
    assert {number for number, _ in watched.free} == {1, 2, 3, 4}  # the first fifth of six layers, and the last
    fit_model(model, recipe, here, callbacks=[watched, Look()])

    assert len(seen) == recipe.steps
    averages: dict[Any, Any] = dict.fromkeys(watched.free, 0)
    for worth in seen[: schedule.ramp_end(20)]:
        averages = {place: 0.9 * averages[place] + 0.1 * worth[place] for place in averages}
    kept = selection.select_groups(averages, ratio, how)
    widths = watched.widths()
    assert {place: widths.kept[place[0]][place[1]] for place in kept} == kept
    left = {place: stay for place, stay in kept.items() if place[1] == "channels"}
    assert sum(map(len, left.values())) == 4 * 128 * (1 - ratio)
    assert len({len(stay) for stay in left.values()}) == 1 or how == "global"


@pytest.mark.parametrize("stop", [5, 11, 19])
def test_resumed_run_equals_uninterrupted_run(folder, stop):
    """Stopped before the masks, while they change, and after; the second run uses micro-batches."""
    whole, pruned = trained(narrowing_run(folder))
    with pytest.raises(RuntimeError, match="stopped"):
        trained(narrowing_run(folder, "name=again"), Stop(stop))
    again, resumed = trained(narrowing_run(folder, "name=again"))
    assert resumed.widths() == pruned.widths() and pruned.widths().narrowed_groups()
    for name, half in adapter_factors(whole).items():
        assert torch.equal(half, adapter_factors(again)[name]), name
    for name, worth in pruned.averages.values.items():
        assert torch.equal(worth, resumed.averages.values[name])


def test_micro_batches_give_the_same_step(folder):
    whole, pruned = trained(narrowing_run(folder))
    parts, again = trained(narrowing_run(folder, "name=again", "heal.micro_batch=1", "heal.recompute=all"))
    assert again.widths() == pruned.widths()
    for name, half in adapter_factors(whole).items():
        torch.testing.assert_close(half, adapter_factors(parts)[name], rtol=1e-2, atol=1e-3)


def test_healed_model_equals_its_narrower_reload(folder):
    here = narrowing_run(folder)
    model = here.experiment.heal(here.dense.load(), Plan(DEPTH, ()), here)
    widths = Widths.read(here.folder / "adapter" / WIDTHS_FILE)
    assert widths.count("channels") == 5 * 64 + 128 and widths.count("heads") == 5 + 2
    heal: Any = here.experiment.heal
    left = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    assert heal.healed_sizes(here, here.plan, None)["parameters"] == left
    assert left < 0.7 * here.dense.sizes("layer").total["parameters"]
    again = here.experiment.heal(here.dense.load(), Plan(DEPTH, ()), here)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    assert not (here.folder / "heal").exists()


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_quantised_base_is_masked_and_exported_narrower(folder, quantise):
    from depthcut.study import export

    here = narrowing_run(folder, f"model.quantise={quantise}")
    model = here.experiment.heal(here.dense.load(), Plan(DEPTH, ()), here)
    ids = torch.arange(40).reshape(2, 20)
    merged = export.merge_for_export(here, Plan(DEPTH, ()), lambda: model)
    channels = [layer.get_parameter("mlp.down_proj.weight").shape[1] for layer in layers.layer_list(merged)]
    assert channels == [64] * 5 + [128]
    with torch.no_grad():
        wanted, got = model(ids).logits, merged(ids).logits
    # int8 also rounds what goes into its products.
    assert (got - wanted).norm() < {"nf4": 1e-3, "int8": 0.1}[quantise] * wanted.norm()


@pytest.mark.parametrize(("drop", "unit"), [((1, 2), "layer"), ((3,), "attention")])
def test_layers_left_by_a_plan_are_narrowed(folder, drop, unit):
    from depthcut.study import export

    plan = Plan(DEPTH, drop, unit)
    here = narrowing_run(folder, f"prune.unit={unit}", f"prune.layers={len(drop)}")
    here.decide(plan)
    model = here.experiment.heal(here.dense.load(plan), plan, here)
    export.export_model("merged", plan, here, lambda: model)
    read = depthcut.load(here.folder / "model", dtype="float32")
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    heal: Any = here.experiment.heal
    assert heal.healed_sizes(here, here.plan, None)["parameters"] == sum(p.numel() for p in read.parameters())
    widths = Widths.read(here.folder / "model" / WIDTHS_FILE)
    assert len(widths.kept) == len(plan.keep) and ("heads" in widths.kept[3]) == (unit == "layer")


def test_non_finite_gradients_are_reported(folder, caplog):
    """The loss may be finite all the same. Steps before them count; without any there is no selection."""
    here = narrowing_run(folder)
    recipe: Any = here.experiment.heal
    model = adapter_modules.add_adapters(here.dense.load(), recipe, Plan(DEPTH, ()))
    pruning = Pruning(model, recipe)
    for value, step in ((float("nan"), 1), (0.1, 2), (float("inf"), 3)):
        for half in model.parameters():
            half.grad = torch.full_like(half, value) if half.requires_grad else None
        pruning.step(step)
    pruning.step(18)
    assert "the gradients of 3 steps are not finite" in caplog.text and pruning.widths().narrowed_groups()
    with pytest.raises(ValueError, match="no step had finite gradients"):
        Pruning(model, recipe).step(18)


def test_no_layer_left_to_narrow_is_refused(folder):
    here = narrowing_run(folder, "heal.keep_last=6")
    with pytest.raises(ValueError, match=r"none of 6 layers may be narrowed; lower heal.keep_first"):
        preflight.prepare_run(here)


def test_excessive_frac_is_refused_before_healing(folder):
    narrow = narrowing_run(folder, "heal.frac=0.9")
    with pytest.raises(
        ValueError, match=r"heal.frac=0.9: without 5 of 6 layers \d+ parameters remain, but at least \d+ remain"
    ):
        preflight.prepare_run(narrow)


def test_replacements_are_refused(folder):
    filled = ("replace=mean", "prune.frac=0.34", "data.calibration.sequences=8")
    with pytest.raises(
        ValueError, match="heal=loraprune narrows plain layers: it needs replace=none, got replace=mean"
    ):
        _ = opened(folder, model_of("llama"), *KNOBS, *filled).digest


def test_only_adapted_modules_of_free_layers_are_narrowed(folder):
    only = narrowing_run(folder, "heal.modules=ffn")
    recipe: Any = only.experiment.heal
    pruning = Pruning(adapter_modules.add_adapters(only.dense.load(), recipe, Plan(DEPTH, ())), recipe)
    assert {kind for _, kind in pruning.free} == {"channels"}
    assert dataclasses.replace(recipe, keep_first=0.5).free(30) == range(15, 29)


@pytest.mark.parametrize("how", ["uniform", "global"])
@pytest.mark.parametrize(
    ("family", "frac", "plan", "knobs"),
    [
        ("llama", 0.34, Plan(DEPTH, ()), ()),
        ("opt", 0.5, Plan(DEPTH, ()), ("heal.keep_first=0", "heal.keep_last=0")),
        ("qwen2", 0.3, Plan(DEPTH, (1, 2)), ("heal.modules=ffn",)),
        ("llama", 0.0, Plan(DEPTH, ()), ()),
    ],
)
def test_width_by_frac_removes_equivalent_parameters(folder, family, frac, plan, knobs, how):
    """The next wider sliced model has more parameters than the model without that share of layers."""
    here = opened(folder, model_of(family), *KNOBS, f"heal.frac={frac}", f"heal.selection={how}", *knobs)
    asked: Any = here.experiment.heal
    found = matched.resolve_ratio(asked, plan, here)
    cut = range(len(plan.keep) - round(frac * len(plan.keep)), len(plan.keep))
    wanted = sum(
        p.numel() for p in here.dense.load(Plan(DEPTH, (*plan.drop, *(plan.keep[at] for at in cut)))).parameters()
    )

    def sliced(ratio: float) -> int:
        pruning = Pruning(adapter_modules.add_adapters(here.dense.load(plan), asked, plan), asked)
        worth = {place: torch.arange(float(each.count)) for place, each in pruning.free.items()}
        pruning.masks.keep(selection.select_groups(worth, ratio, asked.selection))
        slicing.narrow_model(model := here.dense.load(plan), pruning.widths())
        return sum(p.numel() for p in model.parameters())

    assert sliced(found.ratio) <= wanted
    assert found.ratio == 0 if frac == 0 else sliced(found.ratio - 1e-4) > wanted


def test_excessive_frac_is_refused_during_healing(folder):
    here = narrowing_run(folder, "heal.frac=0.9")
    with pytest.raises(
        ValueError, match=r"^heal.frac=0.9: without 5 of 6 layers \d+ parameters remain, but at least \d+ remain at"
    ):
        here.experiment.heal(here.dense.load(), Plan(DEPTH, ()), here)


def test_digest_covers_frac(folder):
    digests = [
        narrowing_run(folder, *knobs).digest
        for knobs in (("heal.frac=0.2",), ("heal.frac=0.3",), ("heal.frac=null",), ())
    ]
    assert len(set(digests)) == 3 and digests[2] == digests[3]


# As a user gives it

RUN = (
    "experiment=loraprune",
    "model=pico",
    "model.heads=4",
    "eval=[loss]",
    "data=files",
    "data.validation.sequences=8",
    "model.heal.length=64",
    "heal.steps=20",
    "heal.warmup=1",
    "heal.prune_every=2",
    "heal.save_every=2",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, corpus) -> dict[str, Any]:
    """Return the record of a run in one process."""
    return succeed(f"outputs={tmp_path_factory.mktemp('alone')}", *RUN, *corpus)


@pytest.mark.slow
def test_two_processes_match_one(tmp_path, alone, corpus):
    """The widths and the curve are the same. Each process reads half of a step's sequences, one at a time."""
    run_torchrun(f"outputs={tmp_path}", *RUN, *corpus, "heal.micro_batch=1", "stages=[healed]", "export=adapter")
    one, two = alone["folder"], tmp_path / "main" / alone["folder"].name
    assert (two / "adapter" / WIDTHS_FILE).read_bytes() == (one / "adapter" / WIDTHS_FILE).read_bytes()
    curves = [[float(row["loss"]) for row in csv.DictReader((each / "heal.csv").open())] for each in (one, two)]
    assert len(curves[0]) == 20 and curves[1] == pytest.approx(curves[0], abs=2e-4)
    record = json.loads((two / "record.json").read_text())
    assert record["healed/size/parameters"] == alone["healed/size/parameters"]


def test_run_ends_in_a_narrower_model(alone):
    record = alone
    assert record["fraction"] == 0 and record["pruned/validation/loss"] == record["dense/validation/loss"]
    assert record["healed/validation/loss"] < record["dense/validation/loss"]
    exported = record["folder"] / "model"
    assert json.loads((exported / "config.json").read_text())["model_type"] == "depthcut"
    model = depthcut.load(exported, dtype="float32")
    heads = [layer.get_parameter("self_attn.k_proj.weight").shape[0] // 8 for layer in layers.layer_list(model)]
    assert heads == [2] * 7 + [4]
    parameters = sum(p.numel() for p in model.parameters())
    assert record["healed/size/parameters"] == parameters < 0.7 * record["dense/size/parameters"]
    assert record["healed/size/cache_bytes"] < 0.6 * record["dense/size/cache_bytes"]
    assert (exported / WIDTHS_FILE).read_bytes() == (record["folder"] / "adapter" / WIDTHS_FILE).read_bytes()


PLAINLY = """
import sys
sys.modules["depthcut"] = None                                     # as where it is not installed
import torch
from transformers import AutoModelForCausalLM
model, found = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, output_loading_info=True)
assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"], found
config = model.config
assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 2, 8)
assert config.intermediate_size == 64
ids = torch.arange(10, 30)[None]
with torch.no_grad():
    settings = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    greedy = [model.generate(ids, **settings, use_cache=cache).tolist() for cache in (True, False)]
assert greedy[0] == greedy[1]
"""


@pytest.mark.slow
def test_killed_run_exports_same_plain_transformers_model(tmp_path, corpus):
    """If all layers have the same width."""
    alike = ("heal.keep_first=0", "heal.keep_last=0", "stages=[healed]", "heal.steps=40")
    whole = succeed(f"outputs={tmp_path}/whole", *RUN, *corpus, *alike)
    process = start(f"outputs={tmp_path}/killed", *RUN, *corpus, *alike)
    while not list(tmp_path.glob("killed/main/*/heal/last.ckpt")):
        assert process.poll() is None and not time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = succeed(f"outputs={tmp_path}/killed", *RUN, *corpus, *alike)
    for name in ("adapter/adapter_model.safetensors", f"adapter/{WIDTHS_FILE}", "model/model.safetensors"):
        assert (killed["folder"] / name).read_bytes() == (whole["folder"] / name).read_bytes(), name
    call = [sys.executable, "-W", "ignore", "-c", PLAINLY, str(whole["folder"] / "model")]
    done = subprocess.run(call, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr


def test_adapters_on_unprunable_modules_are_refused(tmp_path):
    """StarCoder 2 has an FFN whose names are not known. The refusal comes before anything is loaded."""
    here = opened(tmp_path, model_of("starcoder2", num_key_value_heads=2), "heal=loraprune", "heal.modules=ffn")
    with pytest.raises(UserError, match=r"heal\.modules=ffn adapts nothing that can be narrowed"):
        here.experiment.heal.prepare(here)
