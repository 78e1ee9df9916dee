"""Healing on several GPUs of one machine: tokens a second of one, and of two, by copies (DDP) and by shares (FSDP2).

    python bench/ranks.py                           # one GPU, then two in both ways; a torchrun each
    python bench/ranks.py --cases one,ddp2,ddp2_same,fsdp2

Llama-2-7B at half its layers, random weights in bfloat16, LoRA of rank 64 on the FFN, 8 x 2,048 tokens a step and GPU
(``_same``: 8 x 2,048 a step in all). The real healing run, planner and trainer included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch

from healing import BATCH, LENGTH, VOCABULARY, WARM, Case, llama, recipe_of, with_adapters

STEPS = 10


@dataclass(frozen=True)
class Ranks:
    """One row.

    Attributes:
        processes: one a GPU.
        strategy: as the recipe says it.
        batch: sequences a step, over all of them.
    """

    processes: int
    strategy: Literal["ddp", "fsdp"] = "ddp"
    batch: int = BATCH


CASES = {
    "one": Ranks(1),
    "ddp2": Ranks(2, batch=2 * BATCH),
    "ddp2_same": Ranks(2),
    "fsdp2": Ranks(2, "fsdp", 2 * BATCH),
}


def measured(case: Ranks, layers: int) -> dict[str, Any]:
    """A healing run's tokens a second, as this process sees it, and its peak."""
    import lightning as L

    from depthcut import ranks
    from depthcut.heal.lora import Lora
    from depthcut.log.csv import Csv
    from depthcut.text import Tokens
    from depthcut.training import fit

    seen: dict[int, float] = {}

    class Clock(L.Callback):
        """Looks at the clock behind the warm-up and at the end."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            step = trainer.global_step
            if step in (WARM, WARM + STEPS) and step not in seen:
                torch.cuda.synchronize()
                seen[step] = time.perf_counter()

    device = ranks.gpu()
    recipe = recipe_of(Lora, steps=WARM + STEPS, batch=case.batch, strategy=case.strategy)
    model = with_adapters(llama(Case("7b", layers, "depthcut", nf4=False)))
    rows = np.random.default_rng(0).integers(0, VOCABULARY, ((WARM + STEPS) * case.batch, LENGTH)).astype(np.int32)
    text = Tokens(rows, np.full(len(rows), LENGTH, np.int32), np.array([], np.uint64), "random")
    shared = Path(tempfile.gettempdir()) / f"depthcut_{os.environ.get('TORCHELASTIC_RUN_ID')}"
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own) if case.processes == 1 else shared
        lab: Any = SimpleNamespace(
            folder=folder, device=device, train=lambda: text, experiment=SimpleNamespace(seed=0, log=Csv())
        )
        torch.cuda.reset_peak_memory_stats()
        fit.fit(model, recipe, lab, callbacks=[Clock()])
    seconds = (seen[WARM + STEPS] - seen[WARM]) / STEPS
    return {
        "tokens_s": case.batch * LENGTH / seconds,
        "step_s": seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    """Run the cases, each under a torchrun of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="one,ddp2,fsdp2", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        numbers = measured(CASES[asked.one], asked.layers)
        from depthcut import ranks

        if not ranks.rank():
            print(json.dumps(numbers))
        return
    names = asked.cases.split(",")
    if unknown := set(names) - set(CASES):
        sys.exit(f"error: --cases: {', '.join(sorted(unknown))} is none of: {', '.join(CASES)}")
    if (most := max(CASES[name].processes for name in names)) > torch.cuda.device_count():
        sys.exit(f"error: this needs {most} GPUs; torch sees {torch.cuda.device_count()}")
    rates: dict[str, float] = {}
    for name in names:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(CASES[name].processes)]
        start = [sys.executable, *(several if CASES[name].processes > 1 else [])]
        call = [*start, __file__, "--one", name, "--layers", str(asked.layers)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        line = next((each for each in done.stdout.splitlines() if each.startswith("{")), "")
        if done.returncode or not line:
            print(name, "failed:", done.stderr[-3000:], flush=True)
            continue
        rates[name] = json.loads(line)["tokens_s"]
        times = f"{rates[name] / rates['one']:.2f} times one" if "one" in rates else ""
        print(name, line, times, flush=True)
    print(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
