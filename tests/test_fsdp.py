"""A model sharded among processes heals like a whole one. As a script: one of the processes."""

import csv
import dataclasses
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from adapting import workspace
from composing import composed
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.heal.full import Full
from depthcut.heal.training import adapter_modules, fit, shadow_layers
from depthcut.model.checkpoint import sharded as checkpoint_sharded
from depthcut.model.checkpoint import shards
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.checkpoint.tensors import TensorFiles
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.runtime import devices, ranks
from depthcut.study import measuring
from depthcut.study.run import open_run
from pico import pico
from recipes import RECIPE
from running import ENVIRONMENT

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has some for every run
LORA = dataclasses.replace(RECIPE, steps=5, batch=4, clip=0.3, recompute=1, weight_decay=0.1, strategy="fsdp")
FULL = Full(**{field.name: getattr(LORA, field.name) for field in dataclasses.fields(Full)})
STOP = 3
DEEP, WIDE = Plan(18, (4, 9)), {"hidden_size": 256, "intermediate_size": 512}  # the model that is read in shards
HELD: list[int] = []  # the most bytes of parameters at a time


class Watch(L.Callback):
    """Assert that weights are sharded during training; optionally stop the run."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop

    def on_train_batch_start(self, trainer, module, *_) -> None:
        parts = [each for layer in decoder_layers.layer_list(module.model) for each in layer.parameters()]
        assert all(isinstance(each, DTensor) == (ranks.world_size() > 1) for each in parts)
        if ranks.world_size() > 1:
            assert sum(each.to_local().numel() for each in parts) < 0.6 * sum(each.numel() for each in parts)
        if trainer.global_step == self.stop:
            raise InterruptedError


def healed(folder: Path, what: str, stop: int | None = None) -> dict[str, torch.Tensor]:
    """Train all weights, or adapters on a 16-bit base, in this process; return them and the logits."""
    torch.manual_seed(0)
    base = pico("llama", layers=3)
    recipe = LORA if what == "lora" else FULL
    model = adapter_modules.add_adapters(base.bfloat16(), LORA, Plan(3, ())) if what == "lora" else base
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    fit.fit_model(model, recipe, workspace(folder), callbacks=[Watch(stop)])
    values = {name: each.detach().contiguous() for name, each in trained.items()}
    return (
        values
        if ranks.global_rank()
        else values | {"logits": model.eval()(torch.arange(8)[None]).logits.detach().float()}
    )


def read_and_healed(folder: Path) -> dict[str, torch.Tensor]:
    """The same for a model on disk that several processes read in shards; also return the peak bytes of one."""
    checkpoint = Checkpoint(
        ModelFolder(folder.parent / "model", HashCache(folder.parent / "hashes.json")), separator=None
    )
    several = ranks.world_size() > 1
    if several:
        model: nn.Module = checkpoint_sharded.load_sharded(checkpoint, DEEP, LoadConfig("none", torch.float32, "cpu"))
    else:
        model = checkpoint.load(DEEP, quantise="none", dtype="float32", device="cpu")
    for layer in decoder_layers.layer_list(model):
        layer.mlp.register_forward_hook(lambda *_: look(adapted))
    torch.manual_seed(0)
    recipe = dataclasses.replace(LORA, steps=3, recompute="all", save_every=9, modules="attention", rank=1)
    adapted = adapter_modules.add_adapters(model, recipe, DEEP)
    fit.fit_model(adapted, recipe, workspace(folder), callbacks=[Watch(None)])
    values = {name: each.detach().contiguous() for name, each in adapted.named_parameters() if each.requires_grad}

    def measure(model) -> None:
        if not ranks.global_rank():
            values["logits"] = model().eval()(torch.arange(8)[None]).logits.detach().float()

    if several:
        checkpoint_sharded.run_on_first_rank("cpu", lambda: adapted, measure)
    else:
        measure(lambda: adapted)
    return values | {"held": torch.tensor(HELD.pop())}


def look(model: nn.Module) -> None:
    """Record the bytes of all parameters in this process."""
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in model.parameters()]
    there = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in parts if not each.is_meta}
    HELD[:] = [max(*HELD, sum(there.values()), 0)]


def work(folder: Path) -> None:
    """Heal as one of several processes, interrupted once; rank 0 saves the result."""
    for what in ("lora", "full"):
        with suppress(InterruptedError):
            healed(folder / what, what, STOP)
        assert (folder / what / "heal/last.ckpt").exists()
        values = healed(folder / what, what)
        if not ranks.global_rank():
            save_file(values, folder / what / "values.safetensors")
    values = read_and_healed(folder / "read")
    save_file(values, folder / f"read/values{ranks.global_rank()}.safetensors")


@pytest.fixture(scope="module")
def spread_out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    pico("llama", layers=DEEP.depth, **WIDE).save_pretrained(folder / "model")
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run([*call, str(folder)], env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def losses(folder: Path) -> list[float]:
    with (folder / "heal.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lora", "full"])
def test_sharded_training_equals_one_process(tmp_path, spread_out, what):
    wanted = healed(tmp_path, what)
    assert losses(spread_out / what) == pytest.approx(losses(tmp_path), abs=2e-4)
    found = load_file(spread_out / what / "values.safetensors")
    assert found.keys() == wanted.keys() and len(found) > 20
    assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_model_read_in_shards_equals_whole_model(spread_out):
    """It is healed and measured to the same numbers, and each process holds about half of it."""
    wanted = read_and_healed(spread_out / "one")
    first, second = (load_file(spread_out / f"read/values{rank}.safetensors") for rank in (0, 1))
    whole, led, helped = (each.pop("held").item() for each in (wanted, first, second))
    assert losses(spread_out / "read") == pytest.approx(losses(spread_out / "one"), abs=2e-4)
    assert_close(first, wanted, atol=1e-3, rtol=1e-3)  # a step of AdamW moves a weight by 1e-2
    assert 0.5 * whole < helped <= led < 0.6 * whole  # half of the layers, the weights outside them, and one layer


def test_sharded_layer_needs_all_processes():
    with pytest.raises(ValueError, match="the model is sharded across processes"):
        checkpoint_sharded.ShardedLayers([nn.Linear(2, 2)]).run_layer(0, torch.ones(1, 2))


@pytest.mark.parametrize(("rows", "processes"), [(7, 2), (8, 2), (3, 4), (5, 4), (0, 2)])
def test_rows_are_sharded_as_in_torch(monkeypatch, tmp_path, rows, processes):
    whole = torch.arange(3.0 * rows).reshape(rows, 3).bfloat16()
    save_file({"x": whole}, tmp_path / "model.safetensors")
    files = TensorFiles(ModelFolder(tmp_path, HashCache(tmp_path / "hashes.json")))
    chunks = [*whole.chunk(processes), *[whole[:0]] * processes]
    for rank in range(processes):
        monkeypatch.setattr(ranks, "world_size", lambda: processes)
        monkeypatch.setattr(ranks, "global_rank", lambda number=rank: number)
        assert_close(files.lazy_tensors(["x"])["x"].rows(*shards.own_rows(rows))[:], chunks[rank])
    assert files.bytes_read == processes * whole.nbytes


@pytest.mark.parametrize(
    ("card", "knobs", "shared"),
    [(10**5, (), True), (10**9, (), False), (10**9, ("stream=always",), True), (10**5, ("stream=never",), False)],
)
def test_sharding_follows_gpu_memory_and_settings(monkeypatch, tmp_path, card, knobs, shared):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(devices, "total_memory", lambda _: card)
    given = ("model=pico", "prune=deepest", "heal=lora", "heal.batch=2", "heal.micro_batch=1", f"outputs={tmp_path}")
    x = build.build_experiment(composed(*given, *knobs, "heal.strategy=fsdp", "eval=[loss,speed]"))
    here = open_run(x)
    assert here.dense.is_sharded(None) == shared
    if not shared:
        return
    with pytest.raises(ValueError, match=r"eval\.speed needs the whole model on one GPU"):
        measuring.evaluate(here, "dense", here.dense.whole)
    with pytest.raises(ValueError, match="the metric needs the whole dense model on one GPU"):
        here.dense.whole()
    if card == 10**5:
        with pytest.raises(ValueError, match="2 processes have 0\\.0 GiB each: use more"):
            here.dense.load(Plan(8, (5,)))


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        (("heal=qlora", "model.quantise=nf4"), "fsdp corrupts quantised weights: use heal.strategy=ddp, got model"),
        (("heal=distill", "model.quantise=int8"), "fsdp corrupts quantised weights: use heal.strategy=ddp, got model"),
        (("heal=lora", "heal.optimiser=paged_adamw_8bit"), "heal.strategy=fsdp needs heal.optimiser=adamw, got paged"),
        (("heal=lora", "replace=shared"), "shards plain layers: it needs replace=none, got replace=shared"),
        (("heal=loraprune",), "heal.strategy must be one of ddp, got 'fsdp'"),
    ],
)
def test_invalid_sharding_is_refused_before_loading(knobs, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        build.build_experiment(composed("model=pico", *knobs, "heal.strategy=fsdp"))


def test_layers_with_shared_weights_are_refused():
    layers = decoder_layers.layer_list(pico("llama", layers=3))
    shadow_layers.check_shardable(layers)
    layers[2].mlp = layers[0].mlp
    with pytest.raises(ValueError, match=r"layer 2 shares trained weights with another layer; use heal.strategy=ddp"):
        shadow_layers.check_shardable(layers)
    layers[1].mlp.bfloat16()
    with pytest.raises(ValueError, match=r"layer 1 trains bfloat16 and float32 weights; use heal.strategy=ddp"):
        shadow_layers.check_shardable(layers)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    work(Path(sys.argv[1]))
