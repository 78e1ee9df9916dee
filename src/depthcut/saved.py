"""A model that no plain config describes, on the disk: layers that lost one half. Written and loaded by depthcut."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut import store
from depthcut.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from depthcut.loading import Dtype

KIND = "depthcut"  # in place of the model type: other loaders say that they do not know it, and guess nothing


def write(model: "PreTrainedModel", plan: Plan, folder: Path) -> None:
    """Write the model that ``plan`` left; what transformers can load by itself is a plain folder of its own."""
    model.save_pretrained(str(folder))
    if plan.unit != "layer" and plan.drop:
        path = folder / "config.json"
        base = json.loads(path.read_text(encoding="utf-8"))
        store.write_json(path, {"model_type": KIND, "plan": plan.to_dict(), "base": base})


def load(path: str | Path, *, dtype: "Dtype" = "bfloat16", device: str = "cpu") -> "PreTrainedModel":
    """Load a model that depthcut exported, whatever was cut out of it.

    Args:
        path: the exported folder.
        dtype: of the weights.
        device: where they go, e.g. ``cuda``.

    Returns:
        An ordinary transformers model in eval mode; layers that lost a half hold a stand-in that adds nothing.

    Raises:
        ValueError: if there is no model, or it is damaged.
    """
    import torch
    from transformers import AutoConfig

    from depthcut import loading
    from depthcut.files import Folder, Hashes
    from depthcut.shards import Shards

    folder = Path(path)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no model: there is no config.json")
    files = Folder(folder, Hashes(folder / ".hashes.json"))
    described: dict[str, Any] = files.json("config.json")
    base: dict[str, Any] = dict(described["base"] if described.get("model_type") == KIND else described)
    config = AutoConfig.for_model(base.pop("model_type"), **base)
    found = described.get("plan")
    plan = Plan.from_dict(found) if found else Plan(config.get_text_config().num_hidden_layers, ())
    shards = Shards(files)
    form = loading.Form("none", getattr(torch, dtype), device)
    return loading.build(files.title, config, shards.slices(shards.homes), plan, form)
