"""Subjects of `bench/scores.py`: a model of conf/ with its text, or a random one of a true shape, created locally."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, LlamaConfig

from depthcut.config import build, methods
from depthcut.data.text.tokens import Tokens
from depthcut.metric import Metric
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder.in_memory import InMemory
from depthcut.study.run import open_run
from depthcut.study.standalone import Standalone

ROOT = Path(__file__).parents[1]
SHAPES: dict[str, dict[str, int]] = {
    "llama2_7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "tiny": {  # a smoke test for any machine
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "vocab_size": 256,
    },
}
# Variants to measure in addition to, or instead of, a metric's defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {"angular": [{"token": "last"}, {"token": "all"}]}


def of_config(model: str, sequences: int | None, tokens: int | None, overrides: list[str]) -> Any:
    """Return a run as run.py sets it up; ``None`` keeps the config's calibration text."""
    asked = [f"outputs={ROOT / 'outputs'}", f"model={model}", "eval=[loss]", "stream=never"]
    asked += [f"data.calibration.sequences={sequences}"] if sequences else []
    asked += [f"data.calibration.length={tokens}"] if tokens else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return open_run(build.build_experiment(compose("config", overrides=[*asked, *overrides])))


def of_shape(name: str, sequences: int | None, tokens: int | None) -> Any:
    """Return a subject with a random bfloat16 model and random tokens (64 x 1024)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    llama = LlamaConfig(**SHAPES[name])  # pyright: ignore[reportArgumentType]
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(llama, dtype=torch.bfloat16).eval()
    shape = (sequences or 64, tokens or 1024)
    ids = np.random.default_rng(0).integers(3, SHAPES[name]["vocab_size"], shape, dtype=np.int32)
    lengths = np.full(shape[0], shape[1], dtype=np.int32)
    text = Tokens(ids, lengths, np.array([], dtype=np.uint64), "random")
    return Standalone.of(InMemory(model), text)


def shorter(here: Any, tokens: int) -> Any:
    """Return the subject with the first sequences of its text: at most ``tokens`` tokens, at least one row."""
    text = here.texts.calibration()
    few = text.first(max(1, int((text.lengths.cumsum() <= tokens).sum())))
    return Standalone.of(here.dense, few)


def metrics(names: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Return all metrics of conf/metric, or only the ``names``, each with the options that differ from its file.

    Raises:
        ValueError: if there is no such metric.
    """
    there = sorted(path.stem for path in (ROOT / "conf" / "metric").glob("*.yaml"))
    wanted = names.split(",") if names else there
    if strangers := [name for name in wanted if name not in there]:
        raise ValueError(f"--metrics: no metric {strangers[0]!r}; available: {', '.join(there)}")
    return [(name, knobs) for name in there if name in wanted for knobs in VARIANTS.get(name, [{}])]


def built(name: str, knobs: dict[str, Any], here: Any) -> Metric:
    """Return the metric with its defaults and ``knobs``; least squares gets the tokens that its width needs."""
    node = yaml.safe_load((ROOT / "conf" / "metric" / f"{name}.yaml").read_text(encoding="utf-8"))
    if name == "linearity":
        width = decoder_layers.text_config(here.dense.config).hidden_size
        node["tokens"] = max(node["tokens"], 2 * width)
    return methods.build_method("metric", {**node, **knobs})
