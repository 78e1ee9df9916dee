"""Streaming from disk: the angular map of a model of Llama-2-70B's width, on a GPU or a CPU.

python bench/stream.py --folder /data/stream          24 layers, 43 GB on disk, written once;  one H100: some minutes
python bench/stream.py --folder /tmp/stream --small   a few MB, a smoke test for any machine

The page cache is dropped before each timing. The same run measures two lower bounds of the pass: reading the
same files, and the layers' arithmetic on the same tokens with a layer that is already in memory.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import LlamaConfig

from depthcut.cut.plan import Plan
from depthcut.cut.scores import Scores
from depthcut.data.text.tokens import Tokens
from depthcut.metric.angular import Angular
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.checkpoint.lazy_tensor import LazyTensor
from depthcut.model.checkpoint.on_disk import OnDisk
from depthcut.model.checkpoint.prefetch import READ_BYTES, READER_THREADS
from depthcut.model.decoder import inputs, layers, layerwise
from depthcut.runtime.numbers import Numbers
from depthcut.study.standalone import Standalone

GIB = 2**30
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDE = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}


def main() -> None:
    """Write the checkpoint if it does not exist, measure the bounds and the pass, print a table."""
    asked = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(num_hidden_layers=asked.layers, vocab_size=32000, **(SMALL if asked.small else WIDE))
    if not (asked.folder / "config.json").exists():
        write(config, asked.folder, device)
    checkpoint = Checkpoint(ModelFolder(asked.folder, HashCache(asked.folder / "hashes.json")), separator=None)
    here = Standalone.of(on_disk(checkpoint), random_text(asked.sequences, asked.length))
    metric = Angular(token="last", batch=asked.batch, until=None)

    size, disk = timed(lambda: read_all(checkpoint), cold=asked.folder)
    matmuls = arithmetic(here, asked.batch)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    scores, seconds = timed(lambda: metric(here), cold=asked.folder)

    table = Table(
        title=f"{asked.layers} layers of width {config.hidden_size}, {asked.sequences} x {asked.length} tokens"
    )
    for head in (device, "seconds", ""):
        table.add_column(head, justify="right")
    table.add_row("disk alone", f"{disk:.1f}", f"{size / disk / 1e9:.2f} GB/s with {READER_THREADS} readers")
    table.add_row("matmuls alone", f"{matmuls:.1f}", "the layers on these tokens")
    table.add_row("streamed pass", f"{seconds:.1f}", f"{size / seconds / 1e9:.2f} GB/s, opening included")
    bound = "disk" if disk > matmuls else "matmuls"
    table.add_row(f"bound by the {bound}", "", f"{max(disk, matmuls) / seconds:.0%} of that bound's speed")
    if device == "cuda":
        table.add_row("peak GPU memory", "", f"{torch.cuda.max_memory_allocated() / GIB:.2f} GiB")
    Console(width=100).print(table)
    if asked.whole:
        compare(metric, here, checkpoint, scores)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of the checkpoint, written if it does not exist"
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a tiny width")
    parser.add_argument("--whole", action="store_true", help="also load the whole model, and compare the numbers")
    return parser.parse_args()


def write(config: LlamaConfig, folder: Path, device: str) -> None:
    """Write a random checkpoint in bfloat16, one file per layer."""
    folder.mkdir(parents=True, exist_ok=True)
    homes: dict[str, str] = {}
    stem = "model.layers"
    groups: dict[int | None, dict[str, torch.Size]] = {}
    for name, parameter in layers.meta_model(config).named_parameters():
        groups.setdefault((layers.split_tensor_name(name, stem) or (None,))[0], {})[name] = parameter.shape
    for number, (_, shapes) in enumerate(groups.items()):
        file = f"model-{number:05}.safetensors"
        torch.manual_seed(number)
        tensors = {
            name: (torch.randn(s, device=device, dtype=torch.bfloat16) * 0.02).cpu() for name, s in shapes.items()
        }
        save_file(tensors, folder / file)
        homes |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    config.save_pretrained(folder)


def random_text(sequences: int, length: int) -> Tokens:
    """Return random tokens, which do not affect the time."""
    ids = np.random.default_rng(0).integers(3, 32000, (sequences, length), dtype=np.int32)
    return Tokens(ids, np.full(sequences, length, dtype=np.int32), np.array([], dtype=np.uint64), "random")


def on_disk(checkpoint: Checkpoint) -> OnDisk:
    """Return the dense model in bfloat16, always streamed."""
    how: Any = {"streamable": True, "shardable": False, "rescored": False, "weights_cache": None, "numbers": Numbers()}
    return OnDisk(checkpoint, "none", "bfloat16", "auto", "always", **how)


def timed(work: Callable[[], Any], cold: Path | None = None) -> tuple[Any, float]:
    """Return the result and seconds of ``work``; with ``cold``, first drop that folder's files from the page cache."""
    if cold is not None:
        for path in cold.glob("*.safetensors"):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    start = time.perf_counter()
    value = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value, time.perf_counter() - start


def read_all(checkpoint: Checkpoint) -> int:
    """Read every tensor once, at the disk's speed; return the bytes."""
    slices = [one for index in (None, *range(checkpoint.depth)) for one in checkpoint.tensors(index).values()]

    def read(one: LazyTensor) -> int:
        buffer = torch.empty(min(READ_BYTES, one.nbytes), dtype=torch.uint8)
        for start in range(0, one.nbytes, READ_BYTES):
            one.read_into(start, buffer[: one.nbytes - start])
        return one.nbytes

    with ThreadPoolExecutor(READER_THREADS) as readers:
        return sum(readers.map(read, slices))


def first_layer(checkpoint: Checkpoint, device: str) -> Any:
    """Return a model of the first layer alone."""
    plan = Plan(checkpoint.depth, tuple(range(1, checkpoint.depth)))
    return checkpoint.load(plan, quantise="none", dtype="bfloat16", device=device)


def arithmetic(here: Any, batch: int) -> float:
    """Return the seconds of the layers' computation on these tokens."""
    model = first_layer(here.dense.checkpoint, here.device)
    compute(model, here, batch)
    return timed(lambda: compute(model, here, batch))[1]


@torch.inference_mode()
def compute(model: Any, here: Any, batch: int) -> None:
    """Run all batches through the one layer, once per layer of the model."""
    for ids_BT, mask_BT in here.texts.calibration().batches(batch):
        way = layerwise.start_forward(model, inputs.model_inputs(model, ids_BT, mask_BT))
        h_BTD = way.h_BTD
        for _ in range(here.dense.depth):
            h_BTD = way.step(0, h_BTD)


def compare(metric: Angular, here: Any, checkpoint: Checkpoint, streamed: Scores) -> None:
    """Score the whole model in memory and print the largest difference."""
    model = checkpoint.load(None, quantise="none", dtype="bfloat16", device=here.device)
    here.dense.streaming, here.dense = False, lambda: model
    whole, seconds = timed(lambda: metric(here))
    apart = np.abs(np.array(whole.between) - np.array(streamed.between)).max()
    print(f"whole in memory: {seconds:.1f} s after loading; largest difference of a score: {apart:.1e}")


if __name__ == "__main__":
    main()
