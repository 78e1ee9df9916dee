"""A model's config.json: checked before torch is imported, then read by transformers, with errors in one line."""

import json
import logging
import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.model.checkpoint.config_values import (
    FILE,
    config_leaves,
    shorten_text,
    without_code_choices,
)
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger("depthcut")


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
