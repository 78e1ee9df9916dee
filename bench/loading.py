"""Loading a pruned model: seconds, memory and bytes read, compared with transformers.

    python bench/loading.py --folder /dev/shm/loading              Llama-2-70B at 50 %, with files in memory
    python bench/loading.py --folder /data/loading --shape 7b      on a disk; the page cache is dropped before each load
    python bench/loading.py --folder /tmp/loading --shape tiny     a smoke test for any machine

Writes a checkpoint of the true shape in bfloat16: kept layers contain random numbers, dropped ones are
holes in their files. The deepest layers are dropped, because transformers itself can only load a prefix of a larger
model. Each load runs in a separate process. Host memory excludes page cache and shared memory, includes pinned memory,
and is relative to the memory before the load.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import loading
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import layers, quantisation

GIB = 2**30
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32},
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 80,
    },
}
ROWS = {
    "first": "depthcut, quantised on arrival",
    "again": "depthcut, the same again",
    "keeping": "depthcut, caching the weights",
    "kept": "depthcut, from cached weights",
    "bf16": "depthcut, bfloat16",
    "prefix": "transformers, the same layers",
    "all": "transformers, all layers",
}


def main() -> None:
    """Write the checkpoint if it does not exist, load it by every method, print a table."""
    asked = arguments()
    if asked.row:
        print(json.dumps(measured(asked)))
        return
    config = LlamaConfig(vocab_size=32000, **SHAPES[asked.shape])
    config.num_hidden_layers = asked.layers or config.num_hidden_layers
    if not (asked.folder / "config.json").exists():
        start = time.perf_counter()
        write(config, asked.folder, "all" in asked.rows.split(","), asked.spill)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
    table = Table(title=f"{asked.shape}, {config.num_hidden_layers // 2} of {config.num_hidden_layers} layers, NF4")
    for head in ("", "seconds", "weights GiB", "peak GiB", "reserved GiB", "host GiB", "read GB"):
        table.add_column(head, justify="left" if not head else "right")
    for row in asked.rows.split(","):
        found = in_a_process(row, asked)
        print(row, json.dumps(found), flush=True)
        if "error" in found:
            table.add_row(ROWS[row], found["error"])
            continue
        keys = ("seconds", "weights", "peak", "reserved", "host", "read")
        table.add_row(ROWS[row], *(f"{found[key]:.2f}" if key in found else "" for key in keys))
    Console(width=120).print(table)
    shutil.rmtree(asked.cache or asked.folder / "cache", ignore_errors=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of the checkpoint, written if it does not exist"
    )
    parser.add_argument("--cache", type=Path, help="cache of the quantised weights; FOLDER/cache")
    parser.add_argument("--shape", choices=SHAPES, default="70b")
    parser.add_argument("--spill", type=Path, help="second folder, for a third of the files, if not all fit in FOLDER")
    parser.add_argument("--layers", type=int, help="of the whole model (default: that of the shape)")
    parser.add_argument("--rows", default="first,keeping,kept,prefix", help=f"any of: {', '.join(ROWS)}")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    return parser.parse_args()


def write(config: LlamaConfig, folder: Path, whole: bool, spill: Path | None) -> None:
    """Write the checkpoint, one file per layer; all have the same numbers, which do not affect loading."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[int, dict[str, torch.Size]] = {}
    for name, parameter in layers.meta_model(config).named_parameters():
        groups.setdefault((layers.split_tensor_name(name, "model.layers") or (-1,))[0], {})[name] = parameter.shape
    largest = max(sum(shape.numel() for shape in shapes.values()) for shapes in groups.values())
    bits = (torch.randn(largest, device=device()) * 0.02).bfloat16().cpu().view(torch.uint8).numpy().data
    there = config.num_hidden_layers if whole else config.num_hidden_layers // 2
    homes = {name: f"model-{number + 1:05}.safetensors" for number, shapes in groups.items() for name in shapes}

    def one(number: int) -> None:
        path = folder / f"model-{number + 1:05}.safetensors"
        if spill and number % 3 == 2:
            spill.mkdir(parents=True, exist_ok=True)
            path.symlink_to(spill / path.name)
        fill(path, groups[number], bits if number < there else None)

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(one, groups))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    # Not hashed (138 GB): a real model's files are hashed when its first point is named.
    HashCache(folder / "hashes.json").remember({path: path.name for path in folder.glob("*.safetensors")})


def fill(path: Path, shapes: dict[str, torch.Size], bits: Any) -> None:
    """Write a safetensors file of bfloat16; without ``bits``, a hole with a header."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        described[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        if bits is not None:
            file.write(bits[:end])
        file.truncate(8 + len(header) + end)


def in_a_process(row: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Run one load; return its measurements, or the reason of its failure."""
    chill(asked.folder)
    call = [sys.executable, __file__, "--folder", str(asked.folder), "--shape", asked.shape, "--row", row]
    cache = ["--cache", str(asked.cache)] if asked.cache else []
    done = subprocess.run([*call, *cache], capture_output=True, text=True, check=False)
    line = done.stdout.strip().rpartition("\n")[2]
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads(line)


def chill(folder: Path) -> None:
    """Drop the files from the page cache; files in memory stay."""
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measured(asked: argparse.Namespace) -> dict[str, float]:
    """Measure one load in this process."""
    import_module("bitsandbytes")  # exclude its import from the load

    config = LlamaConfig.from_pretrained(asked.folder)
    n, on_gpu = config.num_hidden_layers, device() == "cuda"
    checkpoint = Checkpoint(ModelFolder(asked.folder, HashCache(asked.folder / "hashes.json")), separator=None)
    if on_gpu:
        torch.zeros(1, device="cuda")
    cache = (asked.cache or asked.folder / "cache") if asked.row in ("keeping", "kept") else None
    with Watch() as watch:
        start = time.perf_counter()
        if asked.row in ("prefix", "all"):
            config.num_hidden_layers = n // 2 if asked.row == "prefix" else n
            model = theirs(asked.folder, config)
        else:
            plan = Plan(n, tuple(range(n // 2, n)))
            form: Any = {"quantise": "none" if asked.row == "bf16" else "nf4", "dtype": "bfloat16"}
            model = checkpoint.load(plan, **form, device=device(), cache=cache)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    found = {"seconds": seconds, "host": (watch.peak + pinned()) / GIB, "weights": weights(model) / GIB}
    if checkpoint.bytes_read:
        found["read"] = checkpoint.bytes_read / 1e9
    if on_gpu:
        found["weights"] = torch.cuda.memory_allocated() / GIB
        found["peak"] = torch.cuda.max_memory_allocated() / GIB
        found["reserved"] = torch.cuda.max_memory_reserved() / GIB
    return found


def theirs(folder: Path, config: LlamaConfig) -> LlamaForCausalLM:
    """Load with transformers."""
    quantised = quantisation.bitsandbytes_config("nf4", torch.bfloat16)
    with loading.quiet_transformers():
        return LlamaForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.bfloat16, quantization_config=quantised, device_map={"": device()}
        )


def weights(model: torch.nn.Module) -> int:
    """Return the bytes of the parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def device() -> str:
    """Return the GPU if available, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pinned() -> int:
    """Return the peak bytes of pinned memory, if torch counts them."""
    count: Any = getattr(torch.cuda, "host_memory_stats", None)
    stats = count() if count and torch.cuda.is_available() else {}
    return max((n for key, n in stats.items() if key.endswith("bytes.peak")), default=0)


class Watch:
    """Measures the peak of the process's own host memory inside the ``with``, relative to the start, in bytes."""

    def __enter__(self) -> "Watch":
        self.before, self.peak, self.over = own(), 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.over.wait(0.02):
            self.peak = max(self.peak, own() - self.before)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def own() -> int:
    """Return the bytes of this process that are not pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
