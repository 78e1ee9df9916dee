"""Loading of an exported model whose layers differ in width, which no plain config describes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import loading
from depthcut.model.checkpoint.lazy_tensor import LazyTensor
from depthcut.model.checkpoint.loading import REFETCH_HINT
from depthcut.model.decoder import layers, sublayers
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery.width import slicing
from depthcut.model.surgery.width.widths import WIDTHS_FILE, Widths
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def build_narrow_model(
    title: str,
    config: "PreTrainedConfig",
    tensors: Mapping[str, LazyTensor],
    plan: Plan,
    widths: Widths,
    load_config: LoadConfig,
) -> "PreTrainedModel":
    """Build the model of ``config`` with ``widths`` and load its weights; ``title`` names it in messages.

    Returns:
        The model in eval mode.

    Raises:
        UserError: if a tensor is missing or not as wide as ``widths`` says.
    """
    kind: Any = type(layers.meta_model(config))

    class Narrow(kind):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if plan.unit != "layer":
                sublayers.remove_sublayers(self, plan)
            slicing.narrow_model(self, widths)

    Narrow.__name__ = kind.__name__
    with loading.quiet_transformers():
        model, report = Narrow.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=load_config.dtype,
            device_map={"": load_config.device},
            ignore_mismatched_sizes=True,  # mismatches are reported below instead of in a table
            output_loading_info=True,
        )
    if wrong := sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]):
        raise UserError(f"{title}: its files do not contain {wrong[0]} of the width in {WIDTHS_FILE}; {REFETCH_HINT}")
    model.__class__ = kind
    return cast("PreTrainedModel", model).eval()
