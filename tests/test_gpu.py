"""The main job on a GPU; skipped without one."""

import dataclasses

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from adapting import adapted, adapted_nf4, gradient_of, workspace
from comparing import relative_error
from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules, fit
from depthcut.heal.training.memory_plan import Layout
from pico import pico
from recipes import AUTO
from running import PICO, UNHEALED, succeed, text_files

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NF4 = ("heal=qlora", "model.quantise=nf4", "model.hidden=64", "heal.length=64")


@pytest.fixture(autouse=True)
def see_the_gpu(monkeypatch):
    import running

    monkeypatch.delitem(running.ENVIRONMENT, "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("base", [(), NF4], ids=["lora", "qlora"])
def test_main_job_heals_and_exports(tmp_path, base):
    record = succeed(f"outputs={tmp_path}/outputs", *PICO, *text_files(tmp_path), *base, "device=cuda")
    assert record["healed/validation/loss"] < record["pruned/validation/loss"]
    assert record["bytes/peak_device"] > 0
    assert "H100" in record["device"] or "NVIDIA" in record["device"]
    assert (record["folder"] / "model" / "model.safetensors").exists()


def test_gpu_numbers_match_the_cpu(tmp_path):
    corpus = text_files(tmp_path)
    records = [
        succeed(f"outputs={tmp_path}/{device}", *UNHEALED, *corpus, "heal=none", "export=none", f"device={device}")
        for device in ("cpu", "cuda")
    ]
    assert records[0]["plan"]["drop"] == records[1]["plan"]["drop"]
    assert records[0]["digest"] == records[1]["digest"]
    for stage in ("dense", "pruned"):
        key = f"{stage}/validation/loss"
        assert records[0][key] == pytest.approx(records[1][key], abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True])
def test_healed_model_stays_on_the_gpu(tmp_path, compiled):
    """Lightning would move it to the host, and evaluation there would be thirty times as slow."""
    recipe = dataclasses.replace(AUTO, compile=compiled)
    model = adapter_modules.add_adapters(pico("llama", layers=2).to("cuda"), recipe, Plan(2, ()))
    fit.fit_model(model, recipe, workspace(tmp_path, "cuda:0"))
    assert all(parameter.is_cuda for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_gradients_match_peft_compiled_and_plain(quantise):
    """The compiler keeps in float32 what single operators round to bfloat16 one by one."""
    model = adapted_nf4("cuda", "bfloat16") if quantise == "nf4" else adapted(torch.bfloat16).to("cuda")
    ids = torch.randint(3, 128, (8, 256), generator=torch.Generator().manual_seed(0)).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        peft = gradient_of(model, ids)
    ours = []
    for compiled in (False, True):
        with fit.applied_layout(model, Layout(4, 0, compiled)):
            ours.append(gradient_of(model, ids))
    assert relative_error(ours[0], peft) < 1e-3
    exact = gradient_of(in_float32(model), ids)
    assert relative_error(ours[1], exact) < 1.1 * relative_error(peft, exact)


def in_float32(model: torch.nn.Module) -> torch.nn.Module:
    """Return the same weights, with matrix products in float32."""
    for part in model.modules():
        if isinstance(part, Linear4bit):
            part.compute_dtype = part.weight.quant_state.dtype = torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model
