"""An ordinary transformers model out of tensors that are read, and quantised, one at a time as they go in.

Where transformers quantises it asks for a tensor, quantises it, and asks for the next: those that it will ask for are
read meanwhile. Where it does not, it asks for all at once, in threads of its own.

``from_pretrained(None, config=..., state_dict=...)`` takes any dictionary of things that can be indexed. Its
``key_mapping``, which seems made for renumbering layers, loads the wrong ones without a word: where a new name is not
wanted it falls back on the old one.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import prefetch, quantised
from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.checkpoint.tensors import LazyTensor
from depthcut.model.decoder import layers
from depthcut.model.decoder.quantisation import LoadConfig, bitsandbytes_config, keep_differentiable
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import Meter

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

GENERATION = "generation_config.json"
LARGE = 4 << 30  # bytes; loading less takes seconds
REFETCH_HINT = "fetch the whole model again"
log = logging.getLogger("depthcut")


def build_model(
    title: str,
    config: "PreTrainedConfig",
    tensors: Mapping[str, LazyTensor],
    plan: Plan,
    load_config: LoadConfig,
) -> "PreTrainedModel":
    """Build the model of ``config`` and fill it, in eval mode; messages call it ``title``.

    Halves that ``plan`` drops are not there, and their tensors not wanted. A ``config`` with a quantisation in it is
    of tensors that are quantised already.

    Raises:
        UserError: if a tensor that the model needs is missing, of another shape, or cannot be converted.
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
        prefetch.prefetched_tensors(tensors, order, largest_layer_bytes(tensors), load_config.device, claimed) as lazy,
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
                ignore_mismatched_sizes=True,  # so that they are reported below rather than in a table
                output_loading_info=True,
            )
        except RuntimeError as error:
            if "conversion of the weights" not in str(error):
                raise
            raise UserError(
                f"{title}: its tensors do not fit together as its config wants them; {REFETCH_HINT}"
            ) from None
    if report["missing_keys"]:
        raise UserError(f"{title}: its files hold no {min(report['missing_keys'])}; {REFETCH_HINT}")
    if report["mismatched_keys"]:
        name, there, wanted = min(report["mismatched_keys"])
        shapes = f"of shape {list(wanted)}, its files have {list(there)}"
        raise UserError(f"{title}: its config wants {name} {shapes}; {REFETCH_HINT}")
    if report["unexpected_keys"]:
        strangers = report["unexpected_keys"]
        quantised.check_strangers(title, strangers, tensors)
        log.warning("%s: %d tensors have no place in the model, e.g. %s", title, len(strangers), min(strangers))
    model.__class__ = kind
    keep_differentiable(model)
    return cast("PreTrainedModel", model).eval()


def check_shapes(title: str, bare: "PreTrainedModel", tensors: Mapping[str, LazyTensor]) -> None:
    """Compare the sizes in the files with those of ``bare``, before memory is taken for either.

    Raises:
        UserError: naming a tensor of another size or of whole numbers, or if ``bare`` is far larger than the files.
    """
    wanted, start = bare.state_dict(), f"{bare.base_model_prefix}."
    for name, tensor in tensors.items():
        own = next((wanted[key] for key in (name, start + name, name.removeprefix(start)) if key in wanted), None)
        shape = tensor.get_shape()
        if own is not None and own.numel() != math.prod(shape):
            has = f"of shape {list(own.shape)}, its files have {shape}"
            raise UserError(f"{title}: its config wants {name} {has}; {REFETCH_HINT}")
        if own is not None and own.is_floating_point() and tensor.get_dtype() not in quantised.FLOATS:
            raise UserError(f"{title} is quantised already: {name} is stored as {tensor.get_dtype()}; {quantised.MEND}")
    weights = sum(parameter.numel() for parameter in bare.parameters())
    held = sum(math.prod(tensor.get_shape()) for tensor in tensors.values())
    if weights > 2 * held + (1 << 24):
        raise UserError(f"{title}: its config describes {weights:,} weights, its files hold {held:,}; {REFETCH_HINT}")


@contextmanager
def counted(tensors: Mapping[str, LazyTensor]) -> Generator[Callable[[], object]]:
    """Show a bar that the yielded function moves by one tensor, where loading takes more than a few seconds."""
    if sum(one.nbytes for one in tensors.values()) < LARGE:
        yield lambda: None
        return
    with Meter("loading: tensors", len(tensors)) as meter:
        yield meter.step


def loading_order(bare: "PreTrainedModel", tensors: Mapping[str, LazyTensor]) -> list[str]:
    """The tensors that transformers will ask for to fill ``bare``, in its order: one after the other by their names.

    That is so where it quantises; else it asks for all at once. What has no place in the model it does not ask for.
    """
    names, start = bare.state_dict().keys(), f"{bare.base_model_prefix}."
    known = (name for name in tensors if name in names or start + name in names or name.removeprefix(start) in names)
    return sorted(known, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def largest_layer_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Bytes of the largest layer; a tensor in none counts as one."""
    sizes: Counter[str] = Counter()
    for name, one in tensors.items():
        sizes["".join(re.findall(r"^.*?\.\d+\.", name)) or name] += one.nbytes
    return max(sizes.values(), default=0)


def without_sublayers(kind: Any, plan: Plan) -> Any:
    """A model class whose models are made without the halves that ``plan`` drops."""
    from depthcut.model.decoder import sublayers

    class WithoutSublayers(kind):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            sublayers.remove_sublayers(self, plan)

    WithoutSublayers.__name__ = kind.__name__
    return WithoutSublayers


def read_generation_config(files: ModelFiles) -> "GenerationConfig | None":
    """Return how the model's makers had it write, as its folder says; None where it does not.

    Raises:
        UserError: if the file is no JSON object, or transformers refuses it.
    """
    from transformers import GenerationConfig

    if GENERATION not in files.names:
        return None
    described = files.read_json(GENERATION)
    try:
        return GenerationConfig.from_dict(described)
    except Exception as error:  # whatever a value breaks first
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        mend = "mend or delete the file"
        raise UserError(f"{files.title}: transformers refuses {GENERATION} ({why}); {mend}") from None


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Keep transformers' bars and tables off the screen for a while; its errors are raised all the same."""
    from transformers.utils import logging as said

    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()
