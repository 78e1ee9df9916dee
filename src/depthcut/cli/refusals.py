"""Overrides, and a deleted folder, that are refused before Hydra acts on them."""

import os
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from depthcut.config import values
from depthcut.config.values import stored_evaluations
from depthcut.runtime import validation
from depthcut.runtime.errors import UserError

LAUNCHERS = ("local", "curve", "slurm")


class UnknownKeyError(UserError):
    """An override of a key that the composed config does not have.

    Attributes:
        key: the key, such as ``heal.steps``.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def refuse_hydra_setting(override: Override) -> None:
    """Hydra acts on its own section: logging, callbacks and environment variables would run code or change the process.

    Raises:
        UserError: for any of its settings but the launcher's.
    """
    key = override.key_or_group
    if re.split("[./]", override.package or key)[0] != "hydra":
        return
    launcher = key == "hydra/launcher" or re.fullmatch(r"hydra\.launcher\.[A-Za-z][\w.-]*", key)
    if not launcher or "_target_" in key or override.package or override.is_delete():
        raise UserError(f"{key} cannot be set: of Hydra's settings only hydra/launcher and hydra.launcher.* can")


def refuse_foreign_launcher(launcher: DictConfig) -> None:
    """Hydra instantiates the launcher.

    Raises:
        UserError: unless it is one of depthcut's, with plain options.
    """
    node: Any = OmegaConf.to_container(launcher, resolve=False)
    target = node.pop("_target_", None)
    words = [word for word in LAUNCHERS if target == f"hydra_plugins.depthcut_launchers.{word}.{word.title()}Launcher"]
    if not words:
        raise UserError(f"hydra/launcher must be one of {', '.join(LAUNCHERS)}, got {validation.format_value(target)}")
    node.pop("_convert_", None)
    for key, value in node.items():
        if words != ["slurm"]:
            raise UserError(f"hydra.launcher.{key}: hydra/launcher={words[0]} has no options")
        values.refuse_targets(f"hydra.launcher.{key}", value)


def refuse_idle(overrides: Iterable[Override], cfg: DictConfig) -> None:
    """An option of an evaluation that is not chosen changes nothing.

    Raises:
        UnknownKeyError: for an override of one.
    """
    composed: Any = OmegaConf.to_container(cfg, resolve=False)
    node = composed.get("eval")
    if not isinstance(node, dict):
        return
    chosen = {word: value for word, value in node.items() if isinstance(value, dict) and "_target_" in value}
    read = set(re.findall(r"\$\{eval\.(\w+)", str(chosen)))
    stored = stored_evaluations()
    for each in overrides:
        group, _, word = each.key_or_group.partition(".")
        word = word.partition(".")[0]
        if group == "eval" and word in node.keys() & stored.keys() and word not in {*chosen, *read}:
            choice = ",".join([*chosen, word])
            raise UnknownKeyError(
                each.key_or_group,
                f"{each.key_or_group} has no effect: no chosen evaluation reads eval.{word}. Choose the evaluations "
                f"with eval=[{choice}]",
            )


def refuse_deleted_folder() -> None:
    """Hydra, and every relative path, needs the current folder.

    Raises:
        UserError: if it is gone.
    """
    try:
        os.getcwd()  # noqa: PTH109  Path.cwd() is the same
    except FileNotFoundError as error:
        raise UserError("the current folder was deleted; change to an existing one") from error
