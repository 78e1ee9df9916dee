"""Exports of a run: a plain model folder, or the adapter with its plan."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from depthcut.cut.plan import Plan
from depthcut.data.text import tokens
from depthcut.model.checkpoint import exported
from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.surgery.width.widths import Widths
from depthcut.runtime import store, verified
from depthcut.study import card

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from depthcut.study.run import Run

ExportKind = Literal["merged", "adapter", "none"]
# Files that AutoProcessor reads in addition to the tokenizer.
SIDE = re.compile(r"(\w+_)?(pre)?processor_config\.json|chat_template\.(json|jinja)")
log = logging.getLogger("depthcut")


def export_model(what: ExportKind, plan: Plan, run: "Run", healed: "Callable[[], nn.Module]") -> None:
    """Write ``model/`` (``merged``), or make sure that ``adapter/`` exists (``adapter``).

    ``AutoModelForCausalLM.from_pretrained`` loads ``model/`` without depthcut. ``depthcut.load`` loads a model with
    removed sublayers, layers of different widths, or replacements that are not plain layers.
    """
    if what == "none":
        return
    if what == "adapter":
        if not verified.is_verified(run.folder / "adapter", run.digest):
            healed()
        log.info("adapter and plan: %s", run.folder / "adapter")
        return

    def make(model: "Callable[[], nn.Module]", folder: Path) -> None:
        if run.dense.is_sharded(plan):
            from depthcut.model.checkpoint import exported_sharded

            exported_sharded.write_exported_sharded(model(), plan, folder)
        else:
            exported.write_exported(
                merge_for_export(run, plan, model), plan, folder, Widths.read_if_present(run.folder / "adapter")
            )
        run.tokenizer.save_pretrained(str(folder))
        if run.experiment.heal.trains:
            stop_at_separator(folder, tokens.separator_id(run.tokenizer, run.separator))
        copy_side_files(run.checkpoint.files, folder)
        plan.write(folder / "plan.json")

    folder = run.folder / "model"
    with run.numbers.timed("export"):
        run.run_sharded(plan, healed, lambda model: verified.cached_folder(folder, partial(make, model), run.digest))
    alone = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] != exported.MODEL_TYPE
    store.write_text(folder / "README.md", card.model_card(run, plan, alone))
    log.info("model: %s", folder)


def stop_at_separator(folder: Path, separator: int) -> None:
    """Make generation stop at the separator of the training documents too, not only at the model's own ends."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = config.get("eos_token_id")
    if before is None:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        before = described.get("base", described).get("eos_token_id")
    ends = before if isinstance(before, list) else [] if before is None else [before]
    if separator not in ends:
        store.write_json(path, {**config, "eos_token_id": [*ends, separator]})


def copy_side_files(files: ModelFiles, folder: Path) -> None:
    """Copy the settings of the model's processors and its chat template, unless ``folder`` has them."""
    for name in sorted(filter(SIDE.fullmatch, files.names)):
        if not (folder / name).exists():
            shutil.copyfile(files.path(name), folder / name)


def merge_for_export(run: "Run", plan: Plan, healed: "Callable[[], nn.Module]") -> "PreTrainedModel":
    """Return the healed model in the run's dtype, unquantised, with adapters merged into *dequantised* weights.

    Merging into 4-bit weights changes the logits by 15 to 38 %; dequantising first, by less than 1 %.
    """
    from peft import PeftModel

    model = healed()
    if isinstance(model, PeftModel):
        base = run.experiment.replace(run.dense.load(plan), plan, run)
        return merge_saved_adapters(base, run.folder / "adapter", run.device)
    return as_plain(dequantise_model(model))


def merge_saved_adapters(base: "nn.Module", folder: Path, device: str = "cpu") -> "PreTrainedModel":
    """Merge the adapters in ``folder`` into the dequantised ``base``, and narrow it to the widths stored with them."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    from depthcut.model.decoder import merging
    from depthcut.model.surgery.width import slicing

    adapted = PeftModel.from_pretrained(dequantise_model(base), str(folder), torch_device=device)
    merged = merging.merge_adapters(adapted)
    if (widths := Widths.read_if_present(folder)) is not None:
        slicing.narrow_model(merged, widths)
    assert isinstance(merged, PreTrainedModel)
    return as_plain(merged)


def as_plain(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return ``model`` with the layer classes and the cache setting that transformers gives it."""
    from depthcut.model.decoder import layers, linear

    linear.restore_conv1d(model, layers.meta_model(model.config))
    model.config.use_cache = True
    return model


def dequantise_model(model: "nn.Module") -> "PreTrainedModel":
    """Return ``model`` with dequantised weights."""
    from transformers import PreTrainedModel

    assert isinstance(model, PreTrainedModel)
    if getattr(model, "hf_quantizer", None) is not None:
        return model.dequantize()  # pyright: ignore[reportReturnType]
    return model
