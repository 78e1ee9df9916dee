"""``model.quantise=auto`` depends on the model, the cut, the recipe and the GPU's size, and precedes the digest."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from composing import composed
from depthcut.config import build
from depthcut.heal.lora import Lora
from depthcut.heal.qlora import QLora
from depthcut.model.surgery.sizes import ModelSize
from depthcut.runtime.devices import GIB
from depthcut.study import auto_quantise, memory_estimate
from depthcut.study.run import Run, open_run
from running import ENVIRONMENT, ROOT

MODEL = ("model=pico", "model.hidden=256", "model.dtype=bfloat16", "device=cpu")
AUTO = ("model.quantise=auto", "heal=qlora", "heal.length=512", "heal.batch=8")


def opened(folder: Path, *words: str, recipe: tuple[str, ...] = AUTO) -> Run:
    """Open a run without choosing its base."""
    x = build.build_experiment(composed(*MODEL, *recipe, f"outputs={folder}", *words))
    cache = folder / "cache"
    return Run(experiment=x, checkpoint=x.model.open(cache), cache=cache, study=folder / x.name)


def choose(here: Run, memory: int | None) -> dict[str, str]:
    return auto_quantise.choose_base(here.experiment, here.checkpoint, here.cache, memory)


def chosen(here: Run, gib: float | None) -> str:
    return choose(here, None if gib is None else int(gib * GIB))["quantise"]


def test_16_bit_weights_stay_when_they_fit(tmp_path: Path) -> None:
    here = opened(tmp_path)
    assert [chosen(here, gib) for gib in (None, 1.01, 1.5, 80)] == ["none", "nf4", "nf4", "none"]
    said = choose(here, 80 * GIB)["why"]
    assert said.startswith("bfloat16 fits, with about ") and said.endswith(" of 80.0 GiB, and is faster than 4 bits")


def test_quantisation_starts_at_the_planners_memory_limit(tmp_path: Path) -> None:
    """Find the limit by bisection and compare it with the smallest layout's memory, worked out by hand."""
    here = opened(tmp_path, "heal.recompute=all", "heal.micro_batch=1", "heal.compile=false", "heal.dropout=0")
    low, high = 1.0, 16.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if chosen(here, middle) == "nf4" else (low, middle)
    width, wide, length, left = 256, 1024, 512, 6
    attention, ffn, head = 4 * width * width, 3 * width * wide, 258 * width
    weights = 2 * (left * (attention + ffn + 2 * width) + 2 * head + width)
    adapters = 4 * left * (4 * 2 * width + 3 * (width + wide))  # rank 4
    kept = int(1.2 * 2 * (5 * width + 2 * wide + wide + 4 * width))  # as memory_plan.activation_width counts a layer
    activations = length * (kept + (left + 4) * 2 * width)
    fixed = (2 + 4 + 2) * adapters + 3 * (1 << 28)
    assert low == pytest.approx(1 + (weights + (fixed + activations) / 0.94) / GIB, rel=0.02)


def test_recipes_and_metrics_restrict_the_base(tmp_path: Path) -> None:
    for words in (("heal=full",), ("metric=taylor",)):
        assert chosen(opened(tmp_path, *words), 1.01) == "none"


def test_unhealed_run_counts_weights_only(tmp_path: Path) -> None:
    unhealed = ("model.quantise=auto", "heal=none")
    here = opened(tmp_path, "stages=[pruned]", recipe=unhealed)
    x = here.experiment
    shape = ModelSize.from_config(here.dense.config, "layer", "none", "bfloat16")
    left = shape.total["weight_bytes"] - sum(shape.weight_bytes[: x.prune.count(ModelSize(8))])
    edge = 1 + left / 0.94 / GIB
    assert [chosen(here, edge + by) for by in (-1e-6, 1e-6)] == ["nf4", "none"]
    dense = opened(tmp_path, "stages=[dense,pruned]", recipe=unhealed)
    assert chosen(dense, edge + 1e-6) == "nf4"


def test_live_teacher_counts_towards_memory(tmp_path: Path) -> None:
    words = ("heal=distill", "heal.length=512", "model.hidden=512", "heal.batch=1")
    live, cached = (opened(tmp_path, *words, f"heal.teacher={how}") for how in ("live", "cached"))
    needs = [
        memory_estimate.MemoryEstimate.of(
            auto_quantise.with_quantise(each.experiment, "none"), each.checkpoint, 8 * GIB
        ).need
        for each in (live, cached)
    ]
    whole = ModelSize.from_config(live.checkpoint.config, "layer", "none", "bfloat16").total["weight_bytes"]
    assert needs[0] - needs[1] == whole


@pytest.mark.parametrize(("base", "kind"), [("none", Lora), ("nf4", QLora)])
@pytest.mark.parametrize("heal", ["lora", "qlora"])
def test_auto_choice_equals_explicit_setting(tmp_path: Path, heal: str, base: Any, kind: type) -> None:
    here = opened(tmp_path, f"heal={heal}", "heal.optimiser=adamw")
    x = auto_quantise.with_quantise(here.experiment, base)
    assert (x.model.quantise, type(x.heal), x.composed["model"]["quantise"]) == (base, kind, base)
    word = kind.__name__.lower()
    cfg = composed(*MODEL, *AUTO, f"heal={heal}", "heal.optimiser=adamw", f"outputs={tmp_path}")
    OmegaConf.update(cfg, "model.quantise", base)
    OmegaConf.update(cfg, "heal._target_", f"depthcut.heal.{word}.{kind.__name__}")
    asked = open_run(build.build_experiment(cfg))
    again = open_run(build.build_experiment(OmegaConf.create(x.composed)))  # as a job of a cluster reads it
    assert asked.digest == again.digest == Run(x, here.checkpoint, here.cache, here.study).digest


def test_cpu_run_uses_unquantised_weights_and_reports_it(tmp_path: Path) -> None:
    here = open_run(build.build_experiment(composed(*MODEL, *AUTO, f"outputs={tmp_path}")))
    assert here.settled == "model.quantise=auto: none; no GPU is used"
    assert here.experiment.model.quantise == "none"
    assert isinstance(here.experiment.heal, Lora)
    given = open_run(build.build_experiment(composed(*MODEL, *AUTO, f"outputs={tmp_path}", "model.quantise=nf4")))
    assert (given.settled, given.experiment.model.quantise) == ("", "nf4")


def test_cached_choice_needs_no_torch(tmp_path: Path) -> None:
    here = opened(tmp_path)
    wanted = choose(here, 8 * GIB)
    words = [*MODEL, *AUTO, f"outputs={tmp_path}"]
    script = f"""
import sys
from pathlib import Path
from composing import composed
from depthcut.config import build
from depthcut.config import experiment
from depthcut.study import memory_estimate
from depthcut.study import auto_quantise
x = build.build_experiment(composed(*{words!r}))
cache = Path({str(here.cache)!r})
print(auto_quantise.choose_base(x, x.model.open(cache), cache, {8 * GIB}), "torch" in sys.modules)
"""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])}
    call = [sys.executable, "-c", script]
    done = subprocess.run(call, env={**ENVIRONMENT, **paths}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{wanted} False"


@pytest.mark.parametrize(("device", "seen"), [("cpu", "0"), ("auto", ""), ("auto", "-1")])
def test_hidden_gpu_counts_as_none(device: str, seen: str, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert auto_quantise.gpu_memory.__wrapped__(device) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_size_is_what_torch_reports() -> None:
    assert auto_quantise.gpu_memory("auto") == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.03)
