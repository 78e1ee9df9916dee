"""Values of a model's config, checked before transformers reads them."""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    pass

FILE = "config.json"

# Config keys for the number of layers.
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# Sizes: positive integers, or lists with one per layer.
SIZES = frozenset(
    {
        *("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner", "vocab_size", "head_dim"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"),
        *("max_position_embeddings", "n_positions"),
    }
)

OBJECTS = frozenset({"text_config", "vision_config", "audio_config", "rope_scaling", "rope_parameters"})

# Far above real models; a larger value is a mistake that would take hours or all of the memory.
DEEPEST, LARGEST, NESTED = 1000, 2**31 - 1, 50

# Keys that select code, kernels or the form of the output, and do not affect the weights.
CHOICES = re.compile(
    r"_?(attn|experts)_implementation\w*|auto_map|custom_\w+|use_kernels|kernel_config|distributed_config"
    r"|base_model_\w+_plan|(use_)?return_dict|output_attentions|output_hidden_states|torchscript|num_labels"
)


def check_values(title: str, described: dict[str, Any]) -> None:
    """Check the config values that transformers checks late, with a traceback, or not at all.

    Raises:
        UserError: naming the key, the expected and the given value.
    """
    for path, value in config_leaves(title, described):
        if isinstance(value, float) and math.isnan(value):
            raise config_value_error(title, path, value, "a number")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
            raise config_value_error(title, path, value, "a number of at most 63 bits")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value + path):
            raise config_value_error(title, path, value, "text without a lone surrogate")
        check_size(title, path, value)
    kind = described.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise config_value_error(title, "model_type", kind, "the name of a model family")


def check_size(title: str, path: str, value: Any) -> None:
    """Check a value that is a size, a number of layers or an object.

    Raises:
        UserError: naming the key.
    """
    part, _, key = path.rpartition(".")
    tower = part not in ("", "text_config") and (value is None or value == 0)
    if key in DEPTH_KEYS and not is_size(value, DEEPEST) and not tower:
        raise config_value_error(title, path, value, f"a whole number from 1 to {DEEPEST}")
    if key in SIZES and not is_size(value, LARGEST) and value is not None:
        raise config_value_error(title, path, value, f"a whole number from 1 to {LARGEST}")
    if key in OBJECTS and value is not None:
        raise config_value_error(title, path, value, "an object")


def is_size(value: Any, most: int) -> bool:
    """Return whether a value is an integer from 1 to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def config_leaves(title: str, described: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the leaf values of a config with their dotted paths; items of a list have the path of the list."""
    waiting: list[tuple[str, Any, int]] = [(key, value, 1) for key, value in described.items()]
    while waiting:
        path, value, level = waiting.pop()
        if level > NESTED:
            raise UserError(f"{title}: {FILE}: {path[:80]} is nested more than {NESTED} levels deep")
        if isinstance(value, dict) and value:
            waiting += [(f"{path}.{key}", inner, level + 1) for key, inner in value.items()]
        elif isinstance(value, list) and value and path.rpartition(".")[2] not in (*DEPTH_KEYS, *OBJECTS):
            waiting += [(path, inner, level + 1) for inner in value]
        elif not isinstance(value, dict):
            yield path, value


def config_value_error(title: str, path: str, value: Any, wanted: str) -> UserError:
    """Return the error for a wrong config value."""
    return UserError(f"{title}: {FILE}: {shorten_text(path)} must be {wanted}, got {shorten_text(repr(value))}")


def shorten_text(text: str, most: int = 80) -> str:
    """Shorten text from a file to one printable line."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= most else f"{line[:most]}..."


def portable_value(value: Any) -> Any:
    """Return a config value with infinities written as transformers writes them, which is plain JSON."""
    if isinstance(value, dict):
        return {key: portable_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [portable_value(inner) for inner in value]
    if isinstance(value, float) and math.isinf(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    return value


def without_code_choices(value: Any) -> Any:
    """Return a config, or part of one, without the keys that select code, kernels or the form of the output."""
    if isinstance(value, dict):
        return {key: without_code_choices(inner) for key, inner in value.items() if not CHOICES.fullmatch(key)}
    return value
