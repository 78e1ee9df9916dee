"""Runs for tests of replacements: a tiny model on disk, and a text of short documents of many lengths."""

import json
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from composing import composed
from depthcut.config import build
from depthcut.model.decoder import layers
from depthcut.model.pico import byte_tokenizer
from depthcut.study.run import Run, open_run
from pico import pico

DEPTH = 6


def model_of(family: str, **changes: Any) -> PreTrainedModel:
    """Return a pico model with a byte vocabulary."""
    return pico(family, DEPTH, vocab_size=258, **changes)


def opened(folder: Path, model: PreTrainedModel, *knobs: str) -> Run:
    """Open a run for ``model``; its calibration text has rows of 4 to 32 tokens."""
    if not (folder / "model").exists():
        model.save_pretrained(folder / "model")
        byte_tokenizer().save_pretrained(folder / "model")
        chance = random.Random(0)
        letters = string.ascii_letters + string.digits + string.punctuation
        lines = ["".join(chance.choices(letters, k=chance.randrange(4, 40))) for _ in range(2400)]
        (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    paths = [f"data.{part}.paths=[{folder}/corpus.jsonl]" for part in ("calibration", "train", "validation")]
    sizes = ["data.calibration.sequences=60", "data.validation.sequences=8"]
    sizes += ["data.calibration.length=32", "data.validation.length=32", "model.heal.length=32"]
    base = [f"outputs={folder}/outputs", "model=local", f"model.path={folder}/model", "model.dtype=float32"]
    return open_run(build.build_experiment(composed(*base, "data=files", *paths, *sizes, "eval=[loss]", *knobs)))


@torch.no_grad()
def edges(model: PreTrainedModel, here: Run) -> list[np.ndarray]:
    """Return the hidden states (N x D) at all layer boundaries, from hooks, one document at a time, without padding."""
    stack, seen = list(layers.layer_list(model)), [[] for _ in range(DEPTH + 1)]
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, at=at: seen[at].append(stream(args, kwargs)), with_kwargs=True
        )
        for at, layer in enumerate(stack)
    ]
    handles.append(stack[-1].register_forward_hook(lambda _, __, out: seen[-1].append(stream([out], {}))))
    text = here.texts.calibration()
    for row, length in zip(text.ids, text.lengths, strict=True):
        model(torch.from_numpy(row[None, :length].astype(np.int64)))
    for handle in handles:
        handle.remove()
    return [np.concatenate(each) for each in seen]


def stream(args: Any, kwargs: Any) -> np.ndarray:
    found = args[0] if args else kwargs["hidden_states"]
    found = found[0] if isinstance(found, tuple) else found
    return found[0].double().numpy()
