"""`depthcut mergekit PLAN.json --model NAME`: converts a plan to a slice file for mergekit."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan
from depthcut.cut.spans import layer_spans
from depthcut.runtime import store
from depthcut.runtime.arguments import OneLineParser
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.model.decoder.quantisation import Dtype

DTYPES: tuple["Dtype", ...] = ("bfloat16", "float16", "float32")


def slice_yaml(plan: Plan, model: str, dtype: "Dtype" = "bfloat16") -> str:
    """Return YAML for ``mergekit-yaml``: one passthrough slice per run of kept layers, half-open, from 0.

    mergekit 0.1.5 does not shorten lists in the config that have one entry per layer: its output for a model with
    ``layer_types`` (Qwen, Gemma) loads only after they are cut by hand. depthcut's exports have them cut.

    Args:
        plan: a plan of whole layers.
        model: model for mergekit: a folder, or OWNER/NAME on the hub.
        dtype: dtype of the weights that mergekit writes.

    Raises:
        UserError: for a plan of sublayers.
    """
    if plan.unit != "layer":
        raise UserError(f"this plan drops the {plan.unit} of layers; mergekit slices contain whole layers")
    import yaml

    runs = [{"sources": [{"model": model, "layer_range": list(run)}]} for run in layer_spans(plan.keep)]
    content: dict[str, Any] = {"slices": runs, "merge_method": "passthrough", "dtype": dtype}
    return f"# depthcut {plan.words}.\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=1000)


def main(words: Sequence[str]) -> None:
    """Print or write the slice file of a plan."""
    parser = OneLineParser(prog="depthcut mergekit", description=__doc__)
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="of a point of a study, or written by hand")
    parser.add_argument("--model", required=True, metavar="NAME", help="a folder, or OWNER/NAME on the hub")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights to be written")
    parser.add_argument("-o", type=Path, metavar="FILE", dest="file", help="write to this file instead of printing")
    given = parser.parse_args(words)
    text = slice_yaml(Plan.read(given.plan), given.model, given.dtype)
    if given.file is None:
        sys.stdout.write(text)
        return
    try:
        store.write_text(given.file, text)
    except OSError as error:
        raise UserError(f"cannot write {given.file}: {error.strerror}") from None
