"""Exported models that no plain config describes: missing sublayers, uneven widths, replacement layers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan
from depthcut.runtime import store
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from depthcut.model.checkpoint.files import ModelFiles
    from depthcut.model.decoder.quantisation import Dtype
    from depthcut.model.surgery.width.widths import Widths

MODEL_TYPE = "depthcut"  # replaces the model type: other loaders refuse the model instead of guessing


def write_exported(model: "PreTrainedModel", plan: Plan, folder: Path, widths: "Widths | None" = None) -> None:
    """Write the pruned model; if transformers can load it unaided, the folder is a plain one."""
    from depthcut.model.decoder.quantisation import LoadConfig
    from depthcut.model.surgery import gaps
    from depthcut.model.surgery.width import slicing
    from depthcut.model.surgery.width.widths import WIDTHS_FILE

    filling = gaps.extract_filling(model, plan)
    gaps.remove_filling(model)
    model.save_pretrained(str(folder))
    if filling is not None:
        filling.write(folder)
        gaps.insert_filling(model, filling, plan, LoadConfig("none", model.dtype, model.device.type))
    if widths is not None:
        widths.write(folder / WIDTHS_FILE)
    narrowed = widths is not None and not slicing.config_describes_model(model.config, model)
    write_depthcut_config(folder, plan, filling is not None, narrowed)


def write_depthcut_config(folder: Path, plan: Plan, replaced: bool = False, narrowed: bool = False) -> None:
    """Add to the config in ``folder`` what a plain one cannot say: missing sublayers, filled gaps, uneven widths."""
    if replaced or narrowed or (plan.unit != "layer" and plan.drop):
        path = folder / "config.json"
        base = json.loads(path.read_text(encoding="utf-8"))
        described = {"model_type": MODEL_TYPE, "plan": plan.to_dict(), "base": base}
        store.write_json(path, {**described, "replaced": replaced, "narrowed": narrowed})


def load_exported(path: str | Path, *, dtype: "Dtype" = "bfloat16", device: str = "cpu") -> "PreTrainedModel":
    """Load a model exported by depthcut, whatever was pruned or replaced.

    Args:
        path: the exported folder.
        dtype: type of the weights.
        device: for example ``cuda``.

    Returns:
        A transformers model in eval mode; stand-ins that add nothing take the place of dropped sublayers.

    Raises:
        UserError: if there is no model, or it is damaged.
    """
    import torch

    from depthcut.model.checkpoint import loading, narrow
    from depthcut.model.checkpoint.files import ModelFolder
    from depthcut.model.checkpoint.hash_cache import HashCache
    from depthcut.model.checkpoint.tensors import TensorFiles
    from depthcut.model.decoder import quantisation
    from depthcut.model.surgery import gaps
    from depthcut.model.surgery.filling import Filling
    from depthcut.model.surgery.width.widths import WIDTHS_FILE, Widths

    folder = Path(path)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not a model: it has no config.json")
    files = ModelFolder(folder, HashCache(folder / ".hashes.json"))
    described: dict[str, Any] = files.read_json("config.json")
    config, plan = read_config(files, described)
    whole = Plan(config.get_text_config().num_hidden_layers, ())
    tensor_files = TensorFiles(files)
    tensors = tensor_files.lazy_tensors(tensor_files.weight_map)
    load_config = quantisation.LoadConfig("none", getattr(torch, dtype), device)
    replaced = described.get("replaced", False)
    if described.get("narrowed", False):
        widths = Widths.read(folder / WIDTHS_FILE)
        model = narrow.build_narrow_model(files.title, config, tensors, plan, widths, load_config)
    else:
        model = loading.build_model(files.title, config, tensors, whole if replaced else plan, load_config)
    if replaced:
        gaps.insert_filling(model, Filling.read(folder), plan, load_config)
    if (generation := loading.read_generation_config(files)) is not None:
        model.generation_config = generation
    return model


def read_config(files: "ModelFiles", described: dict[str, Any]) -> "tuple[PreTrainedConfig, Plan]":
    """Return the config and the plan of an exported model, from the content of its config.json.

    Raises:
        UserError: if the file is damaged.
    """
    from transformers import AutoConfig

    try:
        base: dict[str, Any] = dict(described["base"] if described.get("model_type") == MODEL_TYPE else described)
        config = AutoConfig.for_model(base.pop("model_type"), **base)
        whole = Plan(config.get_text_config().num_hidden_layers, ())
        return config, Plan.from_dict(described["plan"]) if "plan" in described else whole
    except (KeyError, TypeError) as error:
        raise files.damaged_error("config.json", repr(error)) from None
