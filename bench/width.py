"""LoRAPrune's criterion: its agreement with the exact one, and the memory and time of each.

python bench/width.py                                   agreement: SmolLM2 on two cores, some minutes
python bench/width.py --memory                          memory and time, in bf16: a minute
python bench/width.py --memory heal=none model.quantise=nf4      on a base without other gradients

Agreement: one backward pass computes the gradients of the weights and of their adapters; both criteria use
them, group by group, each matrix normalised. Spearman's rho of FFN channels is a mean over the layers; that
of KV groups, of which a layer has few, is over all layers at once. Memory: one process per method.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

import subjects
from depthcut.heal.training import lean_lora
from depthcut.heal.width import criterion
from depthcut.model.decoder import inputs, layers
from depthcut.model.surgery.width.groups import layer_groups

WAYS = {"forward": "forward pass alone", "lora": "adapters' gradients", "full": "gradients of all weights"}

# Return freed memory to the system at once, so its count is accurate.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,32,128")
    parser.add_argument("--steps", default="0,16", help="AdamW steps on the adapters before the measurement")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(spent(asked)))
    elif asked.memory:
        Console(width=120).print(memory())
    else:
        Console(width=120).print(agreement(asked))


# Agreement


def agreement(asked: Any) -> Table:
    """Compare both criteria on the same gradients, for each rank and number of steps."""
    table = Table(title=f"{asked.model}, {asked.sequences} sequences of at most {asked.length} tokens")
    for head in ("rank", "steps", "channels: rho", "lowest", "same half", "KV groups: rho", "same least"):
        table.add_column(head, justify="right")
    marks = sorted(int(each) for each in asked.steps.split(","))
    for rank in (int(each) for each in asked.ranks.split(",")):
        more = ["model.dtype=float32", f"data.validation.length={asked.length}", *asked.overrides]
        run = subjects.of_config(asked.model, asked.sequences, asked.length, more)
        model, done = adapted(run.dense.whole(), rank), 0
        optimiser = torch.optim.AdamW([p for name, p in model.named_parameters() if "lora_" in name], lr=1e-3)
        batches = training(run)
        for mark in marks:
            for _ in range(mark - done):
                grads(model, [next(batches)])
                optimiser.step()
            done = mark
            grads(model, list(run.texts.calibration().batches(4)), weights=True)
            table.add_row(str(rank), str(mark), *compared(model))
    return table


def training(run: Any) -> Iterator[Any]:
    """Return batches of the validation text, which is not used for the comparison."""
    while True:
        yield from run.texts.validation().batches(4)


def adapted(model: nn.Module, rank: int) -> Any:
    """Return the model with adapters on the linear layers of its decoder layers, as in healing."""
    stem = layers.layer_prefix(model)
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name.startswith(stem)]
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))  # pyright: ignore


def grads(model: Any, batches: list[Any], weights: bool = False) -> None:
    """Compute the gradients of the mean loss over all tokens, optionally also of the weights under the adapters."""
    model.zero_grad()
    for name, parameter in model.named_parameters():
        held = parameter.is_floating_point() and ".base_layer.weight" in name
        parameter.requires_grad_("lora_" in name or (weights and held))
    tokens = sum(int(mask_BT[:, 1:].sum()) for _, mask_BT in batches)
    for ids_BT, mask_BT in batches:
        given = inputs.model_inputs(model.get_base_model(), ids_BT, mask_BT)
        logits_BTV = model(**given).logits[:, :-1]
        (inputs.token_losses(logits_BTV, inputs.next_token_targets(given)).sum() / tokens).backward()


def compared(model: Any) -> list[str]:
    """Return the agreement of the two criteria."""
    ours: dict[str, list[Tensor]] = {"heads": [], "channels": []}
    exact: dict[str, list[Tensor]] = {"heads": [], "channels": []}
    for layer in layers.layer_list(model):
        for kind, known in layer_groups(layer).items():
            ours[kind].append(criterion.group_importance(layer, known))
            parts = [taylor(linear, axis, known.count) for linear, axis in known.linears(layer)]
            exact[kind].append(torch.stack([part_G / part_G.norm() for part_G in parts]).sum(0))
    rhos = [rho(a, b) for a, b in zip(ours["channels"], exact["channels"], strict=True)]
    halves = [lowest(a) & lowest(b) for a, b in zip(ours["channels"], exact["channels"], strict=True)]
    same = sum(map(len, halves)) / sum(len(each) // 2 for each in ours["channels"])
    least = [int(a.argmin() == b.argmin()) for a, b in zip(ours["heads"], exact["heads"], strict=True)]
    heads = rho(torch.cat(ours["heads"]), torch.cat(exact["heads"]))
    return [
        f"{sum(rhos) / len(rhos):.3f}",
        f"{min(rhos):.3f}",
        f"{same:.0%}",
        f"{heads:.3f}",
        f"{sum(least)} of {len(least)}",
    ]


def taylor(linear: Any, axis: int, count: int) -> Tensor:
    """Return the exact criterion's sums over groups: ``[dL/dW_ij (W + BA)_ij]^2``."""
    whole_OI = linear.base_layer.weight + linear.get_delta_weight("default")
    each_OI = (whole_OI * linear.base_layer.weight.grad).detach().double().square()
    return each_OI.sum(1 - axis).view(count, -1).sum(1)


def rho(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rho."""
    return float(spearmanr(a.numpy(), b.numpy()).statistic)  # pyright: ignore


def lowest(worth_G: Tensor) -> set[int]:
    """Return the least important half of the groups."""
    return set(worth_G.argsort()[: len(worth_G) // 2].tolist())


# Memory


def memory() -> Table:
    """Measure each method in a separate process."""
    table = Table(title="One sequence, the decoder without its head: memory in addition to the weights, CPU seconds")
    for head in ("", "gradients, MB", "peak, MB", "forward and backward, s", "criterion, s"):
        table.add_column(head, justify="right")
    for way, words in WAYS.items():
        call = [sys.executable, *sys.argv, "--way", way]
        done = subprocess.run(call, capture_output=True, env={**os.environ, **ALLOCATOR}, text=True, check=False)
        if done.returncode:
            table.add_row(words, "none", "", "", "")
            table.caption = done.stderr.splitlines()[-1]
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        numbers = [f"{found[key] / 1e6:,.0f}" for key in ("gradients", "peak")]
        table.add_row(words, *numbers, *(f"{found[key]:.1f}" for key in ("passes", "criterion")))
    return table


def spent(asked: Any) -> dict[str, float]:
    """Return the bytes of gradients, the peak in addition to the weights, and the CPU seconds of the second round."""
    run = subjects.of_config(asked.model, asked.sequences, asked.length, asked.overrides)
    model = run.dense.whole().requires_grad_(False)
    linears = [p for layer in layers.layer_list(model) for p in layer.modules() if isinstance(p, nn.Linear)]
    for linear in linears if asked.way == "full" else []:
        linear.weight.requires_grad_(True)
    model = adapted(model, 8) if asked.way == "lora" else model
    ids_BT, mask_BT = next(iter(run.texts.calibration().batches(1)))
    given = inputs.model_inputs(model, ids_BT, mask_BT)
    found: dict[str, float] = {}
    gc.collect()
    before = now()
    with lean_lora.lean_layers(model), torch.set_grad_enabled(asked.way != "forward"):
        for _ in range(2):
            model.zero_grad()
            start = time.process_time()
            loss = layers.decoder_stack(model)(**given).last_hidden_state.float().square().mean()
            if asked.way != "forward":
                loss.backward()
            between = time.process_time()
            criteria(asked.way, model, linears)
            found = {"passes": between - start, "criterion": time.process_time() - between}
    found["gradients"] = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return {**found, "peak": memory_of("VmHWM") - before}


def criteria(way: str, model: nn.Module, linears: list[nn.Linear]) -> None:
    """Return the importance of each group, by the adapters or exactly."""
    if way == "lora":
        for layer in layers.layer_list(model):
            _ = [criterion.group_importance(layer, known) for known in layer_groups(layer).values()]
    for linear in linears if way == "full" else []:
        assert linear.weight.grad is not None
        with torch.no_grad():
            _ = linear.weight.grad.mul_(linear.weight).square_().sum(1)


def now() -> int:
    """Return the memory of this process in bytes, and reset its peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_of("VmRSS")


def memory_of(word: str) -> int:
    """Return a memory number of this process from Linux: VmRSS, or its peak VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(word)).split()[1])


if __name__ == "__main__":
    main()
