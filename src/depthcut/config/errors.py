"""Errors of Hydra and OmegaConf about a config, in one line: what was expected, what was given."""

import re
import shlex
from pathlib import Path

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from depthcut.runtime.validation import clip_text, describe_missing_key, suggest_choices


def describe_omegaconf_error(error: OmegaConfBaseException) -> str:
    """Name a value that is missing, or an interpolation that leads nowhere."""
    key = error.full_key or "config"
    missing = re.search(
        r"Missing mandatory value: ([\w.]+)|value '([\w.]+)' is missing|'([\w.]+)' is missing", str(error)
    )
    if missing:
        key = max(key, *(name for name in missing.groups() if name), key=len)
        return f"{key} is required: {key}=..."
    return f"{key}: {str(error).splitlines()[0]}"


def describe_override_error(word: str, error: Exception) -> str:
    """Name a word of the command line that is no override, and what to type in the shell instead."""
    if not isinstance(error, OverrideParseException):
        return f"{clip_text(word)}: cannot be parsed ({type(error).__name__}). Write key=value with a plain value"
    lines = (line for line in str(error).splitlines() if not line.startswith("Error parsing override"))
    why = f"{clip_text(word)}: {clip_text(next(lines, 'cannot be read'))}"
    key, equals, value = word.partition("=")
    if not equals:
        return f"{why}. Write key=value"
    typed = shlex.quote(f'{key}="{value}"')
    return f"{why}. A list is [a,b]. For text, type the quotes too: {clip_text(typed)}"


def describe_composition_error(error: Exception, word: str) -> str:
    """Name the override that keeps a config from being composed."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return describe_hydra_error(error, word)
    return f"{clip_text(word)}: cannot be composed ({clip_text(str(error)) or type(error).__name__})"


def describe_hydra_error(error: Exception, word: str = "config") -> str:
    """Name the override that Hydra cannot compose, which is ``word`` where Hydra does not say."""
    text = str(error)
    missing = re.search(r"Could not (?:find|load) '([\w./-]+)/([^'/]+)'", text)
    if missing:
        return describe_unknown_option(missing[1], missing[2], text)
    if unknown := unknown_override_key(error):
        return describe_unknown_key(unknown, error.__cause__)
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous:
        return f"{clip_text(ambiguous[1])}: several values make a sweep, which needs -m (a list is written [a,b])"
    reason = " ".join(clip_text(line.strip()) for line in f"{text}\n{error.__cause__ or ''}".splitlines()[:2])
    return reason if word.partition("=")[0].lstrip("+~") in reason else f"{clip_text(word)}: {reason}"


def unknown_override_key(error: Exception) -> str | None:
    """Return the key that an override names and the config does not have; None for another error."""
    found = re.search(r"Could not override '([^'@]+)'", str(error))
    return found[1] if found else None


def describe_unknown_option(group: str, word: str, text: str) -> str:
    """Return ``model=lama2_7b: no such model. Did you mean llama2_7b? There are: ...``."""
    conf = re.search(r"provider=main, path=file://(\S+)", text)
    options = [path.stem for path in (Path(conf[1]) / group).glob("*.yaml")] if conf else []
    return f"{group}={clip_text(word)}: no such {group.rpartition('/')[2]}. {suggest_choices(word, options)}"


def describe_unknown_key(path: str, cause: BaseException | None) -> str:
    """Name a key that is not in the config, and those that are beside it."""
    parent = getattr(cause, "parent_node", None)
    if not isinstance(parent, DictConfig):
        return f"{path}: no such key"
    keys = dict(parent.items_ex(resolve=False))
    offered = keys.keys() - {"hydra"} if "." not in path else keys.keys()  # the hydra section cannot be set
    return describe_missing_key(path, sorted(map(str, offered)), keys.get("_target_"))
