"""Generation speed: what is timed, how often, under which name; healed models are timed as merged."""

import copy
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from adapting import adapted_everywhere
from composing import composed
from depthcut.config import build
from depthcut.cut import subnetworks
from depthcut.cut.plan import Plan
from depthcut.eval.speed import Speed, machine_name
from depthcut.eval.timing import clock
from depthcut.model.decoder.merging import unwrapped_model
from depthcut.model.pico import byte_tokenizer
from depthcut.runtime import provenance
from depthcut.study import curve, digests, recording
from depthcut.study.run import open_run
from depthcut.study.standalone import Standalone
from gaps import model_of, opened
from pico import pico, texts
from running import ENVIRONMENT, text_files

KNOBS: dict[str, Any] = {
    "batches": [1, 3],
    "prompt": "The Tower",
    "tokens": 5,
    "prefill_batch": 2,
    "prefill_length": 7,
    "warm_up": 1,
    "runs": 2,
}


def speed(**knobs: Any) -> Speed:
    return Speed(**KNOBS | knobs)


def bare(device: str = "cpu") -> Any:
    return Standalone(dense=Weighed(), tokenizer=byte_tokenizer(), device=device)


class Weighed:
    """A model of which only the KV cache counts."""

    total = MappingProxyType({"cache_bytes": 1024})

    def sizes(self, _: str) -> "Weighed":
        return self


def byte_model(**changes: Any) -> Any:
    return pico("llama", layers=2, vocab_size=258, eos_token_id=256, **changes)


def seen(model: nn.Module) -> list[tuple[int, ...]]:
    """Record the input shape of each forward pass."""
    shapes: list[tuple[int, ...]] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        shapes.append(tuple(given["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def test_runs_and_tokens_at_each_batch_size() -> None:
    model = byte_model()
    shapes = seen(model)
    (got,) = speed()(model, bare())
    run = [(9,), *[(1,)] * 4]  # the prompt's nine bytes, then four tokens one by one
    wanted = [(2, 7)] * 3 + [(batch, *each) for batch in (1, 3) for _ in range(3) for each in run]
    assert shapes == wanted
    names = [f"{name}@{batch}" for batch in (1, 3) for name in ("latency_s", "throughput")]
    assert set(got) == {f"speed/{name}{end}" for name in ["tokens_per_second", *names] for end in ("", "_stderr")}
    assert all(value > 0 for value in got.values())
    for batch in (1, 3):
        latency, error = (got[f"speed/latency_s@{batch}{end}"] for end in ("", "_stderr"))
        assert got[f"speed/throughput@{batch}"] == pytest.approx(batch * 5 / latency)
        assert got[f"speed/throughput@{batch}_stderr"] / got[f"speed/throughput@{batch}"] == pytest.approx(
            error / latency
        )


def test_generation_ignores_the_end_token() -> None:
    """Its likeliest next token is always the end."""
    model = byte_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.lm_head.bias = nn.Parameter(torch.eye(258)[256] * 99)
    assert (model(texts()).logits.argmax(-1) == 256).all()
    shapes = seen(model)
    assert speed(batches=[2], prefill_batch=None)(model, bare())
    assert len(shapes) == 3 * 5


def test_means_have_the_standard_errors_of_runs() -> None:
    assert clock.sample_mean_and_stderr([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    rate = clock.tokens_per_second("x", 12, [1.0, 2.0, 6.0])
    assert rate == {"x": 4.0, "x_stderr": pytest.approx(4 * math.sqrt(7 / 3) / 3)}
    values = [0.11, 0.12, 0.1, 0.13]  # where they hardly differ, as the rates themselves do
    rates = [5 / value for value in values]
    assert clock.tokens_per_second("x", 5, values)["x_stderr"] == pytest.approx(statistics.stdev(rates) / 2, rel=0.1)


def test_timer_measures_elapsed_time() -> None:
    assert clock.time_run(lambda: time.sleep(0.02), "cpu") >= 0.02


def test_random_state_is_unchanged() -> None:
    before = torch.random.get_rng_state()
    speed(batches=[1])(byte_model(), bare())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_out_of_memory_batch_has_no_key(caplog: pytest.LogCaptureFixture) -> None:
    model = byte_model()
    shapes = seen(model)
    (got,) = speed(batches=[10**10, 1], prefill_batch=None)(model, bare())
    assert set(got) == {f"speed/{name}@1{end}" for name in ("latency_s", "throughput") for end in ("", "_stderr")}
    assert "speed of generation at batch 10000000000: not measured, because it does not fit in memory" in caplog.text
    assert {shape[0] for shape in shapes} == {1}


def test_out_of_memory_differs_from_other_errors() -> None:
    with clock.suppress_out_of_memory():
        torch.empty(2**60)
    with clock.suppress_out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="shape"), clock.suppress_out_of_memory():
        torch.ones(2) @ torch.ones(3, 3)
    with pytest.raises(KeyError), clock.suppress_out_of_memory():
        raise KeyError


def test_each_batch_size_is_a_separate_part() -> None:
    parts: list[Any] = list(speed().parts())
    assert [(part.batches, part.prefill_batch) for part in parts] == [([], 2), ([1], None), ([3], None)]
    assert [(part.batches, part.prefill_batch) for part in speed(prefill_batch=None).parts()] == [  # type: ignore[attr-defined]
        ([1], None),
        ([3], None),
    ]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"batches": [1, 0]}, r"eval\.speed\.batches must be distinct batch sizes of at least 1, got \[1, 0\]"),
        ({"batches": [2, 2]}, "distinct batch sizes"),
        ({"batches": [], "prefill_batch": None}, "measures nothing"),
        ({"runs": 1}, "greater than 1"),
    ],
)
def test_invalid_option_is_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        speed(**knobs)


# The name under which it is kept.


def test_other_machines_numbers_are_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name = digests.evaluation_digest(speed(), bare())
    assert name == digests.evaluation_digest(speed(), bare())
    assert machine_name("auto") == machine_name("cpu") == f"{provenance.device_name('cpu')} 1"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert digests.evaluation_digest(speed(), bare()) != name


LIGHT = """
import sys
from depthcut.study.standalone import Standalone
from depthcut.eval.speed import Speed
knobs = dict(batches=[1], prompt="a", tokens=5, prefill_batch=None, prefill_length=7, warm_up=1, runs=2)
print(Speed(**knobs).reads(Standalone(device="auto")))
assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_machine_name_needs_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert provenance.device_name("cpu") in done.stdout


def test_cuts_are_timed_by_their_own_points(tmp_path: Path) -> None:
    """Also the dense model, where the curve asks for it: it may hold the adapters of other points."""
    model = byte_model()
    shapes = seen(model)
    assert speed()(model, bare(), [subnetworks.FULL, subnetworks.Subnetwork((1,))]) is None
    assert speed()(model, bare(), [subnetworks.FULL]) is None
    assert not shapes
    corpus = text_files(tmp_path)
    knobs = (
        "model=pico",
        "model.layers=3",
        "data=files",
        "heal=none",
        "export=none",
        "prune=deepest",
        "eval=[loss,speed]",
    )
    small = [f"eval.speed.{key}={value}" for key, value in {**KNOBS, "batches": "[1]"}.items() if key != "prompt"]
    sizes = ("data.validation.sequences=4", f"outputs={tmp_path}/outputs")
    points = [composed(*corpus, *knobs, *small, *sizes, f"prune.layers={n}") for n in (1, 2)]
    labs = [open_run(build.build_experiment(each)) for each in points]
    assert curve.share_passes(points) == set()
    kept = [path for path in (tmp_path / "outputs/cache/evaluations").iterdir() if path.is_dir()]
    assert len(kept) == 3  # three losses in a pass: the whole, and two cuts
    assert all("validation/loss" in (path / "value.json").read_text() for path in kept)
    assert recording.finished_record(labs[0]) is None


# Adapters.


def shared_model(folder: Path) -> Any:
    here = opened(
        folder, model_of("llama"), "replace=shared", "replace.rank=4", "prune=deepest", "prune.layers=2", "device=cpu"
    )
    plan = Plan(6, (2, 3))
    return here.experiment.replace(here.dense.load(plan), plan, here)


def shapes(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (weight.shape, weight.dtype) for name, weight in model.named_parameters()}


@pytest.mark.filterwarnings("ignore")  # peft looks for a base model's card
@pytest.mark.parametrize("kind", ["llama", "shared", "bfloat16"])
def test_healed_model_is_timed_merged_and_left_unchanged(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = shared_model(tmp_path) if kind == "shared" else byte_model()
    model = adapted_everywhere(base.to(torch.bfloat16) if kind == "bfloat16" else base)
    ids = texts()
    with torch.no_grad():
        before, merged = model(ids).logits, copy.deepcopy(model).merge_and_unload()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    tree = [(name, type(part)) for name, part in model.named_modules()]
    with unwrapped_model(model) as inside, torch.no_grad():
        assert [(name, type(part)) for name, part in inside.named_modules()] == [
            (name, type(part)) for name, part in merged.named_modules()
        ]
        assert shapes(inside) == shapes(merged)
        assert (inside(ids).logits - before).abs().max() > 0.5
    assert speed(batches=[1])(model, bare())
    with pytest.raises(KeyError), unwrapped_model(model):
        raise KeyError
    assert [(name, type(part)) for name, part in model.named_modules()] == tree
    after = model.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


@pytest.mark.filterwarnings("ignore")
def test_quantised_base_keeps_its_adapters_unmerged(tmp_path: Path) -> None:
    here = opened(tmp_path, model_of("llama"), "model.quantise=nf4", "heal=none", "device=cpu")
    model = adapted_everywhere(here.dense.load(None))
    with unwrapped_model(model) as inside:
        assert inside is model
    with unwrapped_model(model.get_base_model()) as inside:
        assert inside is model.get_base_model()
    assert speed(batches=[1])(model, here)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_memory_is_measured_and_may_run_out(caplog: pytest.LogCaptureFixture) -> None:
    model, here = byte_model(max_position_embeddings=4096).to("cuda"), bare("cuda")
    ballast = torch.empty(2**30, device="cuda")  # four GiB, before the peak is counted anew
    del ballast
    torch.cuda.empty_cache()
    (got,) = speed(batches=[1, 8], tokens=200)(model, here)
    assert 0 < got["speed/peak_gib@1"] < got["speed/peak_gib@8"] < 1
    torch.cuda.set_per_process_memory_fraction(0.004)  # some 0.3 GiB; keys and values take 0.4
    try:
        (got,) = speed(batches=[4096], prefill_batch=None, tokens=200)(model, here)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not got and "batch 4096: it does not fit in memory" in caplog.text
    assert machine_name("cuda") == torch.cuda.get_device_name()
    here.numbers.note_peak_memory()
    assert here.numbers["bytes/peak_device"] >= 2**32
