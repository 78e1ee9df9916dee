"""Healing recipes of a few steps, and a micro-batch for them."""

import dataclasses

import torch

from composing import composed
from depthcut.config import build
from depthcut.heal.distill import Distill
from depthcut.heal.lora import Lora
from depthcut.heal.training.batches import MicroBatch

RECIPE = Lora(
    steps=4,
    batch=2,
    micro_batch=1,
    length=8,
    lr=1e-2,
    warmup=1,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    clip=1.0,
    optimiser="adamw",
    recompute="none",
    compile=False,
    save_every=1,
    packing="crossed",
    strategy="ddp",
    control=False,
    rank=4,
    alpha=4,
    dropout=0.0,
    modules="all",
    layers="all",
    reach=2,
    init_from=None,
)
ABOVE = dataclasses.replace(RECIPE, layers="after_cut")
AUTO = dataclasses.replace(RECIPE, steps=6, batch=4, micro_batch="auto", recompute="auto", dropout=0.2)


def distill_recipe(**changes) -> Distill:
    heal = build.build_experiment(composed("model=pico", "heal=distill")).heal
    return dataclasses.replace(heal, top_k=16, **changes)


def batch(ids: torch.Tensor) -> MicroBatch:
    return MicroBatch(ids, torch.arange(len(ids)))
