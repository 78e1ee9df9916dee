"""A model's config.json: checked before torch is imported, then read by transformers, with errors in one line."""

import json
import logging
import math
import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

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
log = logging.getLogger("depthcut")


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


def read_model_config(title: str, folder: Path, described: dict[str, Any]) -> "PreTrainedConfig":
    """Read a config that passed :func:`check_values` with transformers. Code shipped with a model is never run.

    Args:
        title: name of the model in messages.
        folder: folder of the model.
        described: content of its config.json.

    Raises:
        UserError: if transformers lacks the model, or refuses a value; names the key if it can be found.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from depthcut.model.checkpoint.loading import quiet_transformers

    kind = described["model_type"]
    if kind not in CONFIG_MAPPING:
        own = " (it requires remote code, which is never run)" if "auto_map" in described else ""
        raise UserError(f"{title}: {FILE}: transformers has no model_type={shorten_text(repr(kind))}{own}")
    used = without_code_choices(described)
    if layers := used.get("num_nextn_predict_layers"):
        log.info("%s: its %s layers that predict later tokens (num_nextn_predict_layers) are skipped", title, layers)
        used["num_nextn_predict_layers"] = 0
    with explain_config_errors(title, described), quiet_transformers(), tempfile.TemporaryDirectory() as clean:
        (Path(clean) / FILE).write_text(json.dumps(used), encoding="utf-8")
        config = AutoConfig.from_pretrained(clean, trust_remote_code=False, local_files_only=True)
    config.name_or_path = str(folder)
    return config


def build_meta_model(title: str, config: "PreTrainedConfig", described: dict[str, Any], most: int) -> "PreTrainedModel":
    """Build the model of a config on the meta device; stop once it has more than ``most`` tensors.

    Raises:
        UserError: if the model cannot be pruned, or the config describes none; names the key if it can be found.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    from depthcut.model.checkpoint.loading import quiet_transformers
    from depthcut.model.decoder import layers as decoder_layers

    try:
        decoder_layers.text_config(config)
    except UserError as error:
        raise UserError(f"{title}: {error}") from None
    count = iter(range(most))

    def stop(*_: Any) -> None:
        if next(count, None) is None:
            raise UserError(f"{title}: {FILE} describes more than {most} tensors, far more than its files contain")

    hook = register_module_parameter_registration_hook(stop)
    try:
        with explain_config_errors(title, described), quiet_transformers():
            return decoder_layers.meta_model(config)
    finally:
        hook.remove()


@contextmanager
def explain_config_errors(title: str, described: dict[str, Any]) -> Generator[None]:
    """Turn errors of transformers and torch about a wrong config into one line.

    Raises:
        UserError: naming the key if it can be found.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # KeyError, AssertionError, ZeroDivisionError, ...: depends on the value
        why = shorten_text(f"{type(error).__name__}: {error}", 200)
        key = find_culprit(described, error)
        value = shorten_text(repr(dict(config_leaves(title, described)).get(key)))
        named = f"{key}={value} is wrong" if key else "no model can be built"
        raise UserError(f"{title}: {FILE}: {named} ({why})") from None


def find_culprit(described: dict[str, Any], error: Exception) -> str:
    """Return the path of the value that an error names by its key or by the value itself; empty if there is none."""
    message = str(error)
    if "adding_idx" in message:
        message += " pad_token_id"
    leaves = dict(config_leaves("the model", described))
    keys = [path for path in leaves if re.search(rf"(?<!\w){re.escape(path.rpartition('.')[2])}(?!\w)", message)]
    values = [path for path, value in leaves.items() if isinstance(value, str) and value and value in message]
    return max(keys or values, key=lambda path: len(path.rpartition(".")[2]), default="")
