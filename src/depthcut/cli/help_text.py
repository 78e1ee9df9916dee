"""The text of ``--help``: the groups with their defaults, the choices of a group, the commented options of a choice."""

import ast
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from depthcut.config.values import CONF
from depthcut.runtime import validation
from depthcut.runtime.errors import UserError

METHOD_GROUPS = ("metric", "prune", "replace", "heal", "eval", "log")
PACKAGES = Path(__file__).parents[2]
USAGE = """\
depthcut removes layers from a language model, heals it, and measures the result.

  depthcut KEY=VALUE ...              run one point: depthcut model=pico prune.frac=0.5
  depthcut -m KEY=VALUE,VALUE ...     run a sweep: depthcut -m prune.frac=0,0.25,0.5
  depthcut --help heal                list the choices of a group
  depthcut --help heal=lora           list the options of a choice, with their comments
  depthcut --config FILE              run the config.yaml of a point
  depthcut --config-dir FOLDER ...    also find choices in FOLDER, such as FOLDER/experiment/mine.yaml
  depthcut --cfg job KEY=VALUE ...    print the composed config
  depthcut --version                  print the version
  depthcut report outputs/main        print the table of a study; depthcut report --help: page, figures, tables
  depthcut mergekit outputs/main/POINT    write the cut as a mergekit config

Results are written to outputs/ in the current folder. In a checkout, `python run.py` is the same as `depthcut`.
"""


def render_help(words: Sequence[str]) -> str:
    """Return the help on ``words``, such as ``heal`` or ``heal=lora``; without any, the overview.

    Raises:
        UserError: for a group or a choice that does not exist.
    """
    return "\n".join(map(render_topic, words)) if words else render_overview()


def render_overview() -> str:
    """Return the usage, the groups, and the options that belong to no group."""
    chosen = default_choices()
    lines = ["== Groups (choose with group=choice) =="]
    for group in group_names():
        marked = [f"{name} (default)" if name in chosen.get(group, ()) else name for name in choice_names(group)]
        lines += textwrap.wrap(f"{group}: {', '.join(marked)}", 120, subsequent_indent="    ")
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    options = text[text.index("\nname:") + 1 : text.index("\nhydra:")]
    return "\n".join([USAGE, *lines, "", "== Top-level options ==", options])


def render_topic(word: str) -> str:
    """Return the choices of a group, or the yaml of one choice.

    Raises:
        UserError: if it does not exist.
    """
    group, _, names = word.partition("=")
    if group not in group_names():
        raise UserError(
            f"--help {validation.clip_text(word)}: no such group. {validation.suggest_choices(group, group_names())}"
        )
    if not names:
        rows = [f"  {group}={name}: {choice_summary(group, name)}" for name in choice_names(group)]
        return "\n".join([f"== {group} ==", *rows, ""])
    found: list[str] = []
    for name in re.findall(r"[\w/]+", names):
        if name not in choice_names(group):
            raise UserError(f"{group}={name}: no such {group}. {validation.suggest_choices(name, choice_names(group))}")
        found.append(f"== {group}={name} ==\n{(CONF / group / name).with_suffix('.yaml').read_text(encoding='utf-8')}")
    return "\n".join(found)


def group_names() -> list[str]:
    """Return the folders of ``conf`` that hold choices, as they are named on the command line."""
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")}
    return sorted(each for each in folders if not each.startswith("experiment/"))


def choice_names(group: str) -> list[str]:
    """Return the choices of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def default_choices() -> dict[str, list[str]]:
    """Return the default choices of each group."""
    entries: list[dict[str, Any]] = [
        each
        for each in yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
        if isinstance(each, dict)
    ]
    pairs = [(key.removeprefix("override "), value) for each in entries for key, value in each.items()]
    return {key: value if isinstance(value, list) else [str(value)] for key, value in pairs}


def module_summary(group: str, path: Path) -> str:
    """Return the first docstring line of the module that a yaml names."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    target: str = (config if "_target_" in config else config[path.stem])["_target_"]
    module = PACKAGES.joinpath(*target.split(".")[:-1]).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    assert docstring, f"{module} has no first line ({group}={path.stem})"
    return docstring.splitlines()[0]


def choice_summary(group: str, name: str) -> str:
    """Return what a choice is, in a line: of its module, or of its yaml's first comment."""
    path: Path = CONF / group / f"{name}.yaml"
    if group in METHOD_GROUPS:
        return module_summary(group, path)
    comments: Iterable[str] = (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next((line[2:] for line in comments if not line.startswith("# @")), "")
