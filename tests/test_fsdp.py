"""A model whose layers are shared out among processes heals as a whole one does. As a script: one of the processes."""

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
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from composing import composed
from depthcut import config, depth, ranks
from depthcut.heal.full import Full
from depthcut.plan import Plan
from depthcut.training import adapters, fit, sharded
from pico import pico
from running import ENVIRONMENT
from test_fit import a_lab
from test_training import RECIPE

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has some for every run
LORA = dataclasses.replace(RECIPE, steps=5, batch=4, clip=0.3, recompute=1, weight_decay=0.1, strategy="fsdp")
FULL = Full(**{field.name: getattr(LORA, field.name) for field in dataclasses.fields(Full)})
STOP = 3


class Watch(L.Callback):
    """Sees to it that weights are shares while they train; may end the run."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop

    def on_train_batch_start(self, trainer, module, *_) -> None:
        parts = [each for layer in depth.layers(module.model) for each in layer.parameters()]
        assert all(isinstance(each, DTensor) == (ranks.world() > 1) for each in parts)
        if ranks.world() > 1:
            assert sum(each.to_local().numel() for each in parts) < 0.6 * sum(each.numel() for each in parts)
        if trainer.global_step == self.stop:
            raise InterruptedError


def healed(folder: Path, what: str, stop: int | None = None) -> dict[str, torch.Tensor]:
    """What is trained of a model, all of it or adapters on a base in 16 bits; and the logits, by this process alone."""
    torch.manual_seed(0)
    base = pico("llama", layers=3)
    recipe = LORA if what == "lora" else FULL
    model = adapters.adapt(base.bfloat16(), LORA, Plan(3, ())) if what == "lora" else base
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    fit.fit(model, recipe, a_lab(folder), callbacks=[Watch(stop)])
    values = {name: each.detach().contiguous() for name, each in trained.items()}
    return values if ranks.rank() else values | {"logits": model.eval()(torch.arange(8)[None]).logits.detach().float()}


def work(folder: Path) -> None:
    """Heal as one of several processes, stopped in the middle; the first one keeps what came of it."""
    for what in ("lora", "full"):
        with suppress(InterruptedError):
            healed(folder / what, what, STOP)
        assert (folder / what / "heal/last.ckpt").exists()
        values = healed(folder / what, what)
        if not ranks.rank():
            save_file(values, folder / what / "values.safetensors")


@pytest.fixture(scope="module")
def spread(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run([*call, str(folder)], env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def losses(folder: Path) -> list[float]:
    with (folder / "heal.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lora", "full"])
def test_shares_are_trained_to_what_one_process_trains(tmp_path, spread, what):
    wanted = healed(tmp_path, what)
    assert losses(spread / what) == pytest.approx(losses(tmp_path), abs=2e-4)
    found = load_file(spread / what / "values.safetensors")
    assert found.keys() == wanted.keys() and len(found) > 20
    assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        (("heal=qlora", "model.quantise=nf4"), "fsdp corrupts quantised weights; take heal.strategy=ddp, got model"),
        (("heal=distill", "model.quantise=int8"), "fsdp corrupts quantised weights; take heal.strategy=ddp, got model"),
        (("heal=lora", "heal.optimiser=paged_adamw_8bit"), "heal.strategy=fsdp needs heal.optimiser=adamw, got paged"),
        (("heal=lora", "replace=shared"), "shares out plain layers; take replace=none, got replace=shared"),
        (("heal=loraprune",), "heal.strategy must be one of ddp, got 'fsdp'"),
    ],
)
def test_what_goes_wrong_with_shares_is_refused_before_anything_is_loaded(knobs, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        config.read(composed("model=pico", *knobs, "heal.strategy=fsdp"))


def test_layers_that_train_the_same_weights_are_refused():
    layers = depth.layers(pico("llama", layers=3))
    sharded.check(layers)
    layers[2].mlp = layers[0].mlp
    with pytest.raises(ValueError, match="layer 2 trains weights of another layer too; take ddp"):
        sharded.check(layers)
    layers[1].mlp.bfloat16()
    with pytest.raises(ValueError, match="layer 1 trains bfloat16 and float32 weights; take ddp"):
        sharded.check(layers)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    work(Path(sys.argv[1]))
