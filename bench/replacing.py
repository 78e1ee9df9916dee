"""Cost of FlexiGPT's choice of bases: the distances between all layers of a model with random weights of a true shape.

python bench/replacing.py                        all 32 layers of Llama-2-7B, rank 256: on an H100, minutes
python bench/replacing.py --shape tiny           a smoke test for any machine

The time of a best approximation and of a pair does not depend on the numbers in the matrices. Target: the 7B shape, all
496 pairs of its layers, under 10 minutes on an H100. Reading the weights is not included.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig

from depthcut.model.decoder import layers as decoder_layers
from depthcut.replace.fitting import low_rank, weight_distance
from subjects import SHAPES


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama2_7b")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="measure every n-th pair, and scale")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(**SHAPES[asked.shape])  # pyright: ignore[reportArgumentType]
    empty, layers = decoder_layers.layer_list(decoder_layers.meta_model(config))[0], int(config.num_hidden_layers)
    table = Table(title=f"{asked.shape}, {layers} layers, rank {asked.rank}, {named(device)}")
    for head in ("matrix", "shape", "approximations, s", "pairs, s"):
        table.add_column(head, justify="right")
    total = 0.0
    for name in weight_distance.shareable_linears(empty):
        shape = tuple(empty.get_parameter(f"{name}.weight").shape)
        spent, pairs = measured(shape, layers, asked.rank, device, asked.every)
        total += spent + pairs
        table.add_row(name, f"{shape[0]} x {shape[1]}", f"{spent:.1f}", f"{pairs:.1f}")
    table.add_row("all", "", "", f"{total:.1f}")
    Console(width=100).print(table)


def measured(shape: tuple[int, ...], layers: int, rank: int, device: str, every: int) -> tuple[float, float]:
    """Return the seconds for one matrix of all layers: the approximations, the pairs."""
    start = time.monotonic()
    pairs = [low_rank.truncated_svd(matrix, rank) for matrix in matrices(shape, layers, device)]
    wait(device)
    between = time.monotonic()
    wanted = [(i, j) for j in range(layers) for i in range(j)][::every]
    for i, j in wanted:
        low_rank.truncation_error(pairs[i], pairs[j], rank)
    wait(device)
    return between - start, (time.monotonic() - between) * every


def matrices(shape: tuple[int, ...], layers: int, device: str) -> Iterator[Tensor]:
    """Return random matrices."""
    for number in range(layers):
        yield torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(number))


def wait(device: str) -> None:
    """Synchronise the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def named(device: str) -> str:
    """Return the name of the GPU, or of the CPU."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


if __name__ == "__main__":
    main()
