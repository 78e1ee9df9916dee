"""Checks of the values of a composed config before it is resolved: resolvers, secrets, text that no file can hold."""

import re
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from depthcut.runtime.errors import UserError
from depthcut.runtime.validation import describe_missing_key, format_value

PACKAGED_CONF = Path(__file__).parents[1] / "conf"
CONF = PACKAGED_CONF if PACKAGED_CONF.is_dir() else Path(__file__).parents[3] / "conf"  # in a checkout, at the top
PLAIN = re.compile(r"\$\{\s*(oc\.select:\s*[\w.]+\s*(,\s*[\w.-]*)?|[\w.\[\]-]*)\s*\}")
"""A reference to another key, such as ``${model.heal.rank}``; ``${oc.select:KEY,DEFAULT}`` is one too."""
RESOLVER = "{} must not call a resolver; a config can only refer to its own keys, as in ${{prune.frac}}"
SECRET = re.compile(
    r"(?i)(^|[_.-])(secret|password|passwd|credentials?|key)$|(access|api|auth|bearer|hf|hub|login|user)[_-]?token$|apikey"
)
LARGEST = 10**15


def check_config_values(cfg: DictConfig) -> None:
    """Check every key and value of a composed config.

    Raises:
        UserError: for a resolver, which could read the environment into files; a key that looks like a secret's; text
            that no file can hold; a number beyond all use.
    """
    composed: Any = OmegaConf.to_container(cfg, resolve=False)
    match composed:
        case {"hydra": {"launcher": launcher}}:  # the only part that can be set
            composed["hydra"] = {"launcher": launcher}
        case _:
            pass
    for path, value in walk_values("", composed):
        if SECRET.search(path):
            raise UserError(
                f"{path} looks like a secret, which records would store in plain text. Set it in the environment"
            )
        if not is_writable(path) or (isinstance(value, str) and not is_writable(value)):
            raise UserError(f"{format_value(path)} must be UTF-8 text without null characters")
        if isinstance(value, str) and calls_resolver(value):
            raise UserError(RESOLVER.format(path))
        if isinstance(value, int | float) and LARGEST < abs(value) < float("inf"):
            raise UserError(f"{path} must be a number of at most {LARGEST:.0e}, got {format_value(value)}")


def walk_values(path: str, node: Any) -> Generator[tuple[str, Any]]:
    """Yield every key and item below ``node`` with its path, e.g. ``eval.harness.tasks[0]``."""
    children: Any = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        name = f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}".removeprefix(".")
        yield name, value
        if isinstance(value, dict | list):
            yield from walk_values(name, value)


def is_writable(text: str) -> bool:
    """Return whether a file or a path can hold ``text``."""
    return not re.search(r"[\x00\ud800-\udfff]", text)


def calls_resolver(text: str) -> bool:
    """Return whether ``text`` holds an interpolation that is more than a key, at any depth."""
    while (plainer := PLAIN.sub("", text)) != text:
        text = plainer
    return "${" in text


def refuse_targets(path: str, value: Any) -> None:
    """An option is a plain value.

    Raises:
        UserError: if a class is named anywhere in it.
    """
    inside = walk_values(path, value) if isinstance(value, dict | list) else ()
    for name, _ in inside:
        if name.rpartition(".")[2].startswith("_target_"):
            raise UserError(f"{name} is not allowed: an option is a plain value")


@cache
def stored_evaluations() -> dict[str, Any]:
    """Return what the files of conf/eval put under ``eval``: options of each evaluation, and shared ones."""
    stored: dict[str, Any] = {}
    for path in (CONF / "eval").glob("*.yaml"):
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        stored |= node if path.stem in node else {path.stem: node}
    return stored


def refuse_unknown_options(left: dict[str, Any]) -> None:
    """Check the shared options under ``eval``, and those of evaluations that are not chosen.

    Raises:
        UserError: for a key that no file of conf/eval has, or a plain value in place of an evaluation.
    """
    stored = stored_evaluations()
    for key, value in left.items():
        if key not in stored:
            raise UserError(describe_missing_key(f"eval.{key}", stored))
        if not isinstance(stored[key], dict):
            continue
        if not isinstance(value, dict):
            raise UserError(
                f"eval.{key} must be a mapping of an evaluation's options, got {format_value(value)}; "
                "to omit an evaluation, list the others: eval=[...]"
            )
        for option in value.keys() - stored[key].keys():
            raise UserError(describe_missing_key(f"eval.{key}.{option}", stored[key]))
