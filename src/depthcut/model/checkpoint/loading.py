"""Building of a transformers model from tensors that are read, and quantised, one at a time.

With quantisation, transformers requests a tensor, quantises it, and requests the next: those are prefetched meanwhile.
Without it, transformers requests all at once, in its own threads.

``from_pretrained(None, config=..., state_dict=...)`` accepts any dictionary of indexable values. Its ``key_mapping``,
which seems made for renumbering layers, silently loads the wrong ones: if a new name is not expected, it falls back to
the old one.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import prefetch, prefetched_tensors, quantised
from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.checkpoint.lazy_tensor import LazyTensor
from depthcut.model.decoder import layers
from depthcut.model.decoder.quantisation import LoadConfig, bitsandbytes_config, keep_differentiable
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

GENERATION = "generation_config.json"
LARGE = 4 << 30  # bytes; smaller models load in seconds
REFETCH_HINT = "download the whole model again"
log = logging.getLogger("depthcut")


def build_model(
    title: str,
    config: "PreTrainedConfig",
    tensors: Mapping[str, LazyTensor],
    plan: Plan,
    load_config: LoadConfig,
) -> "PreTrainedModel":
    """Build the model of ``config`` and load its weights; ``title`` names it in messages.

    Sublayers that ``plan`` drops are neither built nor loaded. If ``config`` has a quantisation config, the tensors are
    quantised already.

    Returns:
        The model in eval mode.

    Raises:
        UserError: if a required tensor is missing, has another shape, or cannot be converted.
    """
    bare = layers.meta_model(config)
    kind: Any = type(bare)
    drops_sublayers = plan.unit != "layer" and plan.drop
    is_quantised = hasattr(config, "quantization_config")
    if not is_quantised:
        check_shapes(title, bare, tensors)
    order = [] if is_quantised else loading_order(bare, tensors)
    with (
        quiet_transformers(),
        counted(tensors) as claimed,
        prefetched_tensors.prefetched_tensors(
            tensors, order, largest_layer_bytes(tensors), load_config.device, claimed
        ) as lazy,
    ):
        try:
            model, report = (without_sublayers(kind, plan) if drops_sublayers else kind).from_pretrained(
                None,
                config=config,
                state_dict=dict(lazy),
                dtype=load_config.dtype,
                quantization_config=None
                if is_quantised
                else bitsandbytes_config(load_config.quantise, load_config.dtype),
                device_map={"": str(prefetch.resolve_device(load_config.device))},
                ignore_mismatched_sizes=True,  # mismatches are reported below instead of in a table
                output_loading_info=True,
            )
        except RuntimeError as error:
            if "conversion of the weights" not in str(error):
                raise
            raise UserError(f"{title}: its tensors do not match its config; {REFETCH_HINT}") from None
    check_loading_report(title, report, tensors)
    model.__class__ = kind
    keep_differentiable(model)
    return cast("PreTrainedModel", model).eval()


def check_loading_report(title: str, report: dict[str, Any], tensors: Mapping[str, LazyTensor]) -> None:
    """Check that each weight of the model was loaded; log the tensors that do not belong to it.

    Raises:
        UserError: if a weight is missing or has another shape.
    """
    if report["missing_keys"]:
        raise UserError(f"{title}: its files do not contain {min(report['missing_keys'])}; {REFETCH_HINT}")
    if report["mismatched_keys"]:
        name, held, wanted = min(report["mismatched_keys"])
        shapes = f"of shape {list(wanted)}, its files contain {list(held)}"
        raise UserError(f"{title}: its config requires {name} {shapes}; {REFETCH_HINT}")
    if report["unexpected_keys"]:
        strangers = report["unexpected_keys"]
        quantised.check_strangers(title, strangers, tensors)
        log.warning("%s: %d tensors do not belong to the model, e.g. %s", title, len(strangers), min(strangers))


def check_shapes(title: str, bare: "PreTrainedModel", tensors: Mapping[str, LazyTensor]) -> None:
    """Compare the tensor sizes in the files with those of ``bare``, before memory is allocated for either.

    Raises:
        UserError: naming a tensor of another size or an integer type, or if ``bare`` is far larger than the files.
    """
    wanted, start = bare.state_dict(), f"{bare.base_model_prefix}."
    for name, tensor in tensors.items():
        own = next((wanted[key] for key in (name, start + name, name.removeprefix(start)) if key in wanted), None)
        shape = tensor.get_shape()
        if own is not None and own.numel() != math.prod(shape):
            has = f"of shape {list(own.shape)}, its files contain {shape}"
            raise UserError(f"{title}: its config requires {name} {has}; {REFETCH_HINT}")
        if own is not None and own.is_floating_point() and tensor.get_dtype() not in quantised.FLOATS:
            raise UserError(f"{title} is already quantised: {name} is stored as {tensor.get_dtype()}; {quantised.MEND}")
    weights = sum(parameter.numel() for parameter in bare.parameters())
    held = sum(math.prod(tensor.get_shape()) for tensor in tensors.values())
    if weights > 2 * held + (1 << 24):
        raise UserError(
            f"{title}: its config describes {weights:,} weights, its files contain {held:,}; {REFETCH_HINT}"
        )


@contextmanager
def counted(tensors: Mapping[str, LazyTensor]) -> Generator[Callable[[], object]]:
    """Yield a function that advances a progress bar by one tensor; it does nothing if loading takes a few seconds."""
    if sum(one.nbytes for one in tensors.values()) < LARGE:
        yield lambda: None
        return
    with Meter("loading: tensors", len(tensors)) as meter:
        yield meter.step


def loading_order(bare: "PreTrainedModel", tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Return the names of the tensors of ``bare`` in the order in which transformers requests them: sorted by name.

    This holds with quantisation; without it, all are requested at once. Tensors without a place in the model are not
    requested.
    """
    names, start = bare.state_dict().keys(), f"{bare.base_model_prefix}."
    known = (name for name in tensors if name in names or start + name in names or name.removeprefix(start) in names)
    return sorted(known, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def largest_layer_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Return the bytes of the largest layer; a tensor outside the layers counts as one."""
    sizes: Counter[str] = Counter()
    for name, one in tensors.items():
        sizes["".join(re.findall(r"^.*?\.\d+\.", name)) or name] += one.nbytes
    return max(sizes.values(), default=0)


def without_sublayers(kind: Any, plan: Plan) -> Any:
    """Return a subclass of ``kind`` whose models are built without the sublayers that ``plan`` drops."""
    from depthcut.model.decoder import sublayers

    class WithoutSublayers(kind):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            sublayers.remove_sublayers(self, plan)

    WithoutSublayers.__name__ = kind.__name__
    return WithoutSublayers


def read_generation_config(files: ModelFiles) -> "GenerationConfig | None":
    """Return the generation config in the model's folder; None if there is none.

    Raises:
        UserError: if the file is not a JSON object, or transformers refuses it.
    """
    from transformers import GenerationConfig

    if GENERATION not in files.names:
        return None
    described = files.read_json(GENERATION)
    try:
        return GenerationConfig.from_dict(described)
    except Exception as error:  # the type depends on the value
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        mend = "correct or delete the file"
        raise UserError(f"{files.title}: transformers refuses {GENERATION} ({why}); {mend}") from None


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Suppress the progress bars and tables of transformers; its errors are still raised."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
