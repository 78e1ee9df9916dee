"""Loading prefetches, within a limit, what transformers will request; cached quantised weights come back the same."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from composing import composed
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules
from depthcut.model.checkpoint import loading, prefetch, prefetched_tensors, quantised_cache
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import quantisation
from depthcut.study.run import open_run
from pico import pico
from recipes import RECIPE
from running import run_bench

CUT, SHORT = Plan(12, (2, 3)), Plan(4, (1,))
NF4: Any = {"quantise": "nf4", "dtype": "bfloat16", "device": "cpu"}
IDS = torch.arange(3, 15)[None]
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


def saved(folder: Path, family: str = "llama", layers: int = 12, **changes: Any) -> Path:
    with loading.quiet_transformers():
        pico(family, layers=layers, **changes).save_pretrained(folder, max_shard_size="200KB")
    return folder


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(ModelFolder(folder, HashCache(folder.parent / "hashes.json")), separator=None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("loading") / "llama")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("small") / "llama", layers=4)


def kept_bytes(checkpoint: Checkpoint, plan: Plan = CUT) -> int:
    parts = [checkpoint.tensors(layer) for layer in (None, *plan.keep)]
    return sum(each.nbytes for part in parts for each in part.values())


class RecordingPrefetcher(prefetched_tensors.Prefetcher):
    """A prefetcher that records the requested tensors, and the bytes in flight at each request."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.order, self.max_bytes = list(how[2]), how[3]
        self.asked: list[str] = []
        self.under_way: list[int] = []
        recorded.append(self)

    def get(self, name: str) -> torch.Tensor:
        tensor = super().get(name)
        self.asked.append(name)
        self.under_way.append(self._reserved_bytes)
        return tensor


recorded: list[RecordingPrefetcher] = []


@pytest.mark.parametrize(("family", "quantise"), [("llama", "nf4"), ("gpt2", "nf4"), ("gemma3", "int8")])
def test_transformers_requests_tensors_in_the_predicted_order(
    family: str, quantise: Any, tmp_path: Path, monkeypatch
) -> None:
    """If transformers changes its order, loading slows down and nothing else fails."""
    monkeypatch.setattr(prefetched_tensors, "Prefetcher", RecordingPrefetcher)
    checkpoint = opened(saved(tmp_path / family, family))
    checkpoint.load(CUT, **(NF4 | {"quantise": quantise}))
    (one,) = recorded
    recorded.clear()
    assert one.asked == one.order
    assert one.unexpected_requests == 0
    assert set(one.asked) == set(one.tensors)
    assert checkpoint.bytes_read == kept_bytes(checkpoint)


def test_prefetch_holds_one_layer_at_most(llama: Path, monkeypatch) -> None:
    monkeypatch.setattr(prefetched_tensors, "Prefetcher", RecordingPrefetcher)
    checkpoint = opened(llama)
    checkpoint.load(CUT, **NF4)
    (one,) = recorded
    recorded.clear()
    layer = sum(each.nbytes for each in checkpoint.tensors(0).values())
    assert one.max_bytes == layer
    assert max(one.under_way) <= layer
    assert Counter(n > layer // 2 for n in one.under_way)[True] > 50, "hardly anything was read ahead"


def test_tensors_outside_the_model_are_not_read(llama: Path, tmp_path: Path, caplog) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "odd")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    home = index["weight_map"]["model.layers.5.mlp.up_proj.weight"]
    stranger = "model.layers.5.mlp.odd_proj.weight"
    save_file(load_file(folder / home) | {stranger: torch.ones(8)}, folder / home, metadata={"format": "pt"})
    index["weight_map"][stranger] = home
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = opened(folder)
    checkpoint.load(CUT, **NF4)
    assert checkpoint.bytes_read == kept_bytes(checkpoint) - 32
    assert "1 tensors do not belong to the model" in caplog.text


@pytest.mark.parametrize("device", DEVICES)
def test_large_tensors_arrive_whole(device: str, llama: Path, monkeypatch) -> None:
    """In pieces, each of which a thread may read."""
    monkeypatch.setattr(prefetch, "READ_BYTES", 1000)
    tensors = opened(llama).tensors(4)
    with prefetched_tensors.prefetched_tensors(tensors, tensors, 1 << 14, device) as lazy:
        for name, tensor in tensors.items():
            assert lazy[name].get_shape() == tensor.get_shape()
            assert torch.equal(lazy[name][...].cpu(), tensor[...])
            assert lazy[name][...].device.type == device


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_loaded_dense_model_can_be_trained(quantise: Any, device: str, small: Path) -> None:
    """A metric loads the dense model inside an evaluation; nothing made in inference mode has a backward pass."""
    with torch.inference_mode():
        model = opened(small).load(None, quantise=quantise, dtype="bfloat16", device=device)
    assert not any(each.is_inference() for each in (*model.parameters(), *model.buffers()))


def test_file_truncated_during_prefetch_is_reported(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "copy")
    tensors = opened(folder).tensors(4)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:2000])
    with (
        pytest.raises(ValueError, match=r"was truncated while it was read|has changed since"),
        prefetched_tensors.prefetched_tensors(tensors, tensors, 1 << 20, "cpu") as lazy,
    ):
        [one[...] for one in lazy.values()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("plan", [Plan(4, (1, 2)), Plan(4, (1, 2), unit="mlp")], ids=["layers", "mlps"])
@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_cached_weights_are_bit_identical(quantise: Any, plan: Plan, device: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", layers=4, tie_word_embeddings=plan.unit == "layer")
    how = NF4 | {"quantise": quantise, "device": device}
    wanted = opened(folder).load(plan, **how)
    first = opened(folder).load(plan, **how, cache=tmp_path / "cache")
    checkpoint = opened(folder)
    again = checkpoint.load(plan, **how, cache=tmp_path / "cache")
    assert checkpoint.bytes_read == 0
    for model in (first, again):
        assert_same(model, wanted)
    frozen, wanted_frozen = ([not p.requires_grad for p in model.parameters()] for model in (again, wanted))
    assert frozen == wanted_frozen
    assert again.config.to_dict() == wanted.config.to_dict()
    assert (again.generation_config.to_dict(), again.training) == (wanted.generation_config.to_dict(), False)


def assert_same(got: Any, wanted: Any) -> None:
    """Assert equal parameters, buffers, quantisation states and outputs."""
    ours, theirs = got.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert [name for name in ours if ours[name].dtype != theirs[name].dtype] == []
    buffers = dict(wanted.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in got.named_buffers())
    for (_, one), (_, other) in zip(got.named_modules(), wanted.named_modules(), strict=True):
        assert type(one) is type(other)
        state, wanted_state = (getattr(getattr(each, "weight", None), "quant_state", None) for each in (one, other))
        if wanted_state is not None:
            assert state is one.quant_state
            assert torch.equal(state.offset, wanted_state.offset)
            assert torch.equal(state.state2.absmax, wanted_state.state2.absmax)
            assert (state.dtype, state.shape, state.blocksize) == (torch.bfloat16, wanted_state.shape, 64)
    ids = IDS.to(got.device)
    with torch.no_grad():
        assert torch.equal(got(ids).logits, wanted(ids).logits)


def test_healing_on_cached_weights_has_the_same_gradients(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    gradients = []
    for load in ({}, {"cache": cache}, {"cache": cache}):
        torch.manual_seed(0)
        model = adapter_modules.add_adapters(opened(small).load(SHORT, **NF4, **load), RECIPE, SHORT)
        model(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert sum(grad.abs().sum() for grad in gradients[0]) > 0
    for others in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize("fault", ["flipped", "short", "gone"])
def test_damaged_cached_weights_are_recomputed_with_a_warning(fault: str, small: Path, tmp_path: Path, caplog) -> None:
    cache = tmp_path / "cache"
    wanted = opened(small).load(SHORT, **NF4, cache=cache)
    (file,) = cache.glob("*/model-*.safetensors")
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if fault == "flipped" else content[:-9])
    with caplog.at_level(logging.INFO, "depthcut"):
        model = opened(small).load(SHORT, **NF4, cache=cache)
    why = "is incomplete (No such file or directory)" if fault == "gone" else f"is damaged ({file.name})"
    assert [record.getMessage() for record in caplog.records] == [f"{file.parent} {why}: rebuilding it"]
    assert_same(model, wanted)
    assert file.read_bytes() == content
    assert opened(small).load(SHORT, **NF4, cache=cache) is not None


def test_full_disk_only_skips_caching(small: Path, tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(quantised_cache, "SPARE_BYTES", 1 << 60)
    model = opened(small).load(SHORT, **NF4, cache=tmp_path / "cache")
    assert model(IDS).logits.isfinite().all()
    assert "the quantised weights are not cached: they need 0.0 GB," in caplog.text
    assert not list(tmp_path.glob("cache/[!.]*/*"))


def test_sharded_cache_equals_a_single_file(small: Path, tmp_path: Path, monkeypatch) -> None:
    wanted = opened(small).load(SHORT, **NF4)
    monkeypatch.setattr(quantised_cache, "SHARD_BYTES", 30_000)
    for _ in range(2):
        assert_same(opened(small).load(SHORT, **NF4, cache=tmp_path / "cache"), wanted)
    sizes = [file.stat().st_size for file in tmp_path.glob("cache/*/model-*.safetensors")]
    assert len(sizes) > 3 and max(sizes) < 40_000


def test_cache_key_covers_everything_weights_depend_on() -> None:
    forms = [
        quantisation.LoadConfig(quantise, dtype, device)
        for quantise, dtype in (("nf4", torch.bfloat16), ("int8", torch.bfloat16), ("nf4", torch.float32))
        for device in ("cpu", "cuda")
    ]
    plans = [CUT, Plan(12, (2,)), Plan(12, (2, 3), unit="mlp")]
    names = [
        quantised_cache.quantised_weights_digest(model, plan, form)
        for model in "ab"
        for plan in plans
        for form in forms
    ]
    assert len(set(names)) == len(names) == 36
    one, other = (
        quantised_cache.quantised_weights_digest("a", CUT, quantisation.LoadConfig("nf4", torch.bfloat16, device))
        for device in ("cuda", "cuda:1")
    )
    assert one == other


def test_run_caches_weights_only_if_asked(tmp_path: Path) -> None:
    words = ("model=pico", "model.quantise=nf4", "model.hidden=64", "heal=none", f"outputs={tmp_path}", "device=cpu")
    plain, keeping = (
        open_run(build.build_experiment(composed(*words, f"keep_weights={keep}"))) for keep in ("false", "true")
    )
    assert plain.digest == keeping.digest
    plain.dense.load(Plan(8, (3,)))
    keeping.dense.load()  # the dense model is not cached
    assert not (tmp_path / "cache" / "weights").exists()
    keeping.dense.load(Plan(8, (3,)))
    assert keeping.numbers["bytes/read"] > 0
    again = open_run(build.build_experiment(composed(*words, "keep_weights=true")))
    again.dense.load(Plan(8, (3,)))
    assert again.numbers["bytes/read"] == 0


@pytest.mark.slow
def test_benchmark_reports_loading_costs(tmp_path: Path) -> None:
    done = run_bench(
        "loading.py", "--folder", tmp_path / "made", "--shape", "tiny", "--rows", "first,keeping,kept,prefix"
    )
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(" ", 1) for line in done.stdout.splitlines() if "{" in line)
    found = {row: json.loads(values) for row, values in rows.items()}
    assert found.keys() == {"first", "keeping", "kept", "prefix"}
    assert len({values["weights"] for values in found.values()}) == 1
    assert found["first"]["read"] == found["keeping"]["read"]
    assert "read" not in found["kept"]
    assert not (tmp_path / "made" / "cache").exists()
