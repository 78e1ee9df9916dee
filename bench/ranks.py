"""Healing on several GPUs of one machine: tokens per second of one, and of two with copies (DDP) and shards (FSDP2).

    python bench/ranks.py                           # one GPU, then two with both strategies; one torchrun each
    python bench/ranks.py --cases one,ddp2,ddp2_same,fsdp2
    python bench/ranks.py --cases fsdp2_70b         # a model that does not fit on one GPU: needs two of 139 GiB
    python bench/ranks.py --cases fsdp2_tiny        # the same in miniature, on two CPU processes if need be

Llama-2-7B at half its layers, random weights in bfloat16, LoRA of rank 64 on the FFN, 8 x 2,048 tokens per step and GPU
(``_same``: 8 x 2,048 per step in total). The real healing code, planner and trainer included.

``fsdp2_70b``: all of Llama-2-70B (128 GiB), 8 x 2,048 tokens per step in total, from files in memory (if not all fit,
a third of them in the folder for temporary files), read by each process in shards; then trained, and
evaluated on 8 x 2,048 tokens by the first process with the help of the others. Host memory excludes page cache and
shared memory.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import LlamaConfig

import loading as files
from depthcut.data.text.parts import GivenText
from depthcut.model.decoder import layers as decoder_layers
from depthcut.study.standalone import Standalone
from healing import BATCH, LENGTH, VOCABULARY, WARM, Case, llama, recipe_of, with_adapters

STEPS = 10


@dataclass(frozen=True)
class Ranks:
    """One row.

    Attributes:
        processes: one per GPU.
        strategy: as in the recipe.
        batch: sequences per step, over all processes.
        files: shape of a model that is read from files, in shards; otherwise Llama-2-7B, created on each GPU.
        layers: default number of layers.
        length: tokens per sequence.
    """

    processes: int
    strategy: Literal["ddp", "fsdp"] = "ddp"
    batch: int = BATCH
    files: Literal["70b", "tiny"] | None = None
    layers: int = 16
    length: int = LENGTH


CASES = {
    "one": Ranks(1),
    "ddp2": Ranks(2, batch=2 * BATCH),
    "ddp2_same": Ranks(2),
    "fsdp2": Ranks(2, "fsdp", 2 * BATCH),
    "fsdp2_70b": Ranks(2, "fsdp", files="70b", layers=80),
    "fsdp2_tiny": Ranks(2, "fsdp", files="tiny", layers=8, length=64),
}


def measured(case: Ranks, asked: argparse.Namespace) -> dict[str, Any]:
    """Return a healing run's tokens per second in this process, and its peak memory."""
    from depthcut.data.text.tokens import Tokens
    from depthcut.heal.lora import Lora
    from depthcut.runtime import ranks

    gpu = torch.cuda.is_available()
    device = ranks.select_gpu() if gpu else "cpu"
    knobs: dict[str, Any] = {"steps": WARM + STEPS, "batch": case.batch, "strategy": case.strategy}
    knobs |= {"micro_batch": asked.micro or "auto", "recompute": asked.recompute, "length": case.length}
    recipe = recipe_of(Lora, **knobs, compile=gpu and not asked.plain)
    rows = np.random.default_rng(0).integers(0, VOCABULARY, ((WARM + STEPS) * case.batch, case.length)).astype(np.int32)
    text = Tokens(rows, np.full(len(rows), case.length, np.int32), np.array([], np.uint64), "random")
    found: dict[str, Any] = {}
    with files.Watch() as host:
        made = Case("7b", asked.layers or case.layers, "depthcut", nf4=False)
        model = spread(asked.folder, device, found) if case.files else llama(made)
        torch.manual_seed(0)
        model = with_adapters(model)
        found |= trained(model, recipe, text, device)
        if case.files:
            evaluate(model, text, device, found)
    return {**found, "host_gib": (host.peak + files.pinned()) / 2**30}


def trained(model: Any, recipe: Any, text: Any, device: str) -> dict[str, Any]:
    """The healing run."""
    import lightning as L

    from depthcut.heal.training import fit
    from depthcut.runtime import ranks

    seen: dict[int, float] = {}

    class Clock(L.Callback):
        """Records the time after the warm-up and at the end."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:  # pyright: ignore
            step = trainer.global_step
            if step in (WARM, WARM + STEPS) and step not in seen:
                if device != "cpu":
                    torch.cuda.synchronize()
                seen[step] = time.perf_counter()

    shared = Path(tempfile.gettempdir()) / f"depthcut_{os.environ.get('TORCHELASTIC_RUN_ID')}"
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own) if ranks.world_size() == 1 else shared
        workspace = Standalone(texts=GivenText(text), folder=folder, device=device)
        reset()
        fit.fit_model(model, recipe, workspace, callbacks=[Clock()])
    seconds = (seen[WARM + STEPS] - seen[WARM]) / STEPS
    return {"tokens_s": recipe.batch * recipe.length / seconds, "step_s": seconds, "peak_gib": peak()}


def spread(folder: Path, device: str, found: dict[str, Any]) -> Any:
    """Load the model in shards from files; add the measurements to ``found``."""
    from depthcut.model.checkpoint import sharded as shares
    from depthcut.model.checkpoint.checkpoint import Checkpoint
    from depthcut.model.checkpoint.files import ModelFolder
    from depthcut.model.checkpoint.hash_cache import HashCache
    from depthcut.model.decoder.quantisation import LoadConfig

    checkpoint = Checkpoint(ModelFolder(folder, HashCache(folder / "hashes.json")), separator=None)
    reset()
    start = time.perf_counter()
    model = shares.load_sharded(checkpoint, None, LoadConfig("none", torch.bfloat16, device))
    if device != "cpu":
        torch.cuda.synchronize()
        found["share_gib"] = torch.cuda.memory_allocated() / 2**30
    found |= {"load_s": time.perf_counter() - start, "load_peak_gib": peak()}
    found["model_gib"] = sum(each.numel() * each.element_size() for each in model.parameters()) / 2**30
    return model


def evaluate(model: Any, text: Any, device: str, found: dict[str, Any]) -> None:
    """Measure the loss on 8 sequences, in the first process."""
    from depthcut.data.text.tokens import Tokens
    from depthcut.eval import FULL_ONLY, loss
    from depthcut.model.checkpoint import sharded

    some = Tokens(text.ids[:BATCH], text.lengths[:BATCH], text.documents, "random")
    reset()

    def work(given: Any) -> None:
        if ranks_here():
            return
        start = time.perf_counter()
        (numbers,) = loss.measure_loss(given(), some, "random", 4, FULL_ONLY)
        found.update({"eval_loss": numbers["random/loss"], "eval_s": time.perf_counter() - start})

    sharded.run_on_first_rank(device, lambda: model, work)
    found["eval_peak_gib"] = peak()


def ranks_here() -> int:
    """Return the rank of this process."""
    from depthcut.runtime import ranks

    return ranks.global_rank()


def of_all(found: dict[str, Any]) -> dict[str, Any]:
    """Return the first process's numbers, with the largest memory of all processes."""
    import torch.distributed as dist

    from depthcut.model.checkpoint import process_group

    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, found, group=process_group.request_group())
    most = {key: max(each[key] for each in every) for key in found if key.endswith("_gib") or key == "load_s"}
    return found | most


def reset() -> None:
    """Reset the peak of memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """Return the peak memory of the GPU in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def write(case: Ranks, asked: argparse.Namespace) -> None:
    """Write the files of a model where they fit."""
    assert case.files
    config = LlamaConfig(vocab_size=VOCABULARY, **files.SHAPES[case.files])
    config.num_hidden_layers = asked.layers or case.layers
    size = 2 * sum(each.numel() for each in decoder_layers.meta_model(config).parameters())
    asked.folder.mkdir(parents=True)
    room = shutil.disk_usage(asked.folder).free > size + 2**30
    files.write(config, asked.folder, whole=True, spill=None if room else asked.folder_beside)


def run(name: str, asked: argparse.Namespace) -> dict[str, Any] | str:
    """Run a case under torchrun; return its numbers, or the reason of its failure."""
    case, found = CASES[name], {}
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    start = [sys.executable, *(several if case.processes > 1 else [])]
    call = [__file__, *sys.argv[1:], "--folder", str(asked.folder)]
    try:
        if case.files:
            begun = time.perf_counter()
            subprocess.run([sys.executable, *call, "--write", name], check=True)
            found["write_s"] = time.perf_counter() - begun
        done = subprocess.run([*start, *call, "--one", name], capture_output=True, text=True, check=False)
    finally:
        for folder in (asked.folder, asked.folder_beside):
            shutil.rmtree(folder, ignore_errors=True)
    print(*(line for line in done.stderr.splitlines() if "healing: " in line), sep="\n", flush=True)
    line = next((each for each in done.stdout.splitlines() if each.startswith("{")), "")
    return done.stderr[-3000:] if done.returncode or not line else found | json.loads(line)


def one(case: Ranks, asked: argparse.Namespace) -> None:
    """Run one process of a case; the first one prints the numbers."""
    if not ranks_here():
        logging.basicConfig(format="%(message)s")
        logging.getLogger("depthcut").setLevel(logging.INFO)
    numbers = measured(case, asked)
    numbers = of_all(numbers) if case.files else numbers
    if not ranks_here():
        print(json.dumps(numbers))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="one,ddp2,fsdp2", help=f"any of: {', '.join(CASES)}")
    parser.add_argument("--layers", type=int, help="of the model (default: that of the case)")
    parser.add_argument("--plain", action="store_true", help="layers are not compiled")
    parser.add_argument("--micro", type=int, help="sequences per pass (default: the planner's choice)")
    parser.add_argument("--recompute", choices=("auto", "none", "all"), default="auto", help="layers that recompute")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/depthcut_ranks"), help="of a case's files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.folder_beside = Path(tempfile.gettempdir()) / "depthcut_ranks_beside"
    return asked


def main() -> None:
    """Run the cases."""
    asked = arguments()
    if asked.write:
        write(CASES[asked.write], asked)
        return
    if asked.one:
        one(CASES[asked.one], asked)
        return
    names = asked.cases.split(",")
    if unknown := set(names) - set(CASES):
        sys.exit(f"error: --cases: {', '.join(sorted(unknown))} must be among: {', '.join(CASES)}")
    gpus = torch.cuda.device_count()
    if (most := max(CASES[name].processes for name in names)) > gpus and names != ["fsdp2_tiny"]:
        sys.exit(f"error: this needs {most} GPUs, torch finds {gpus}")
    rates: dict[str, float] = {}
    for name in names:
        found = run(name, asked)
        if isinstance(found, str):
            print(name, "failed:", found, flush=True)
            continue
        rates[name] = found["tokens_s"]
        times = f"{rates[name] / rates['one']:.2f} times one" if "one" in rates else ""
        print(name, json.dumps(found), times, flush=True)
    print(torch.cuda.get_device_name() if gpus else "no GPU")


if __name__ == "__main__":
    main()
