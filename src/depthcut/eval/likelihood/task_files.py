"""User-defined lm-eval tasks: a yaml by path, or by name in a folder of yamls, and all files that they refer to.

Such a yaml can run code (``!function``, templates), so it is loaded only if the command line names it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from depthcut.runtime import store
from depthcut.runtime.errors import UserError

MOST = 10_000
"""Maximum number of files in ``eval.include_path``."""


def split_shots(task: str) -> tuple[str, str]:
    """Return a task's name or path, and its number of shots, empty if not given."""
    name, sign, shots = task.rpartition("@")
    return (name, shots) if sign and shots.isdigit() else (task, "")


def is_task_path(task: str) -> bool:
    """Return whether a task is a yaml file instead of a name."""
    return split_shots(task)[0].endswith((".yaml", ".yml"))


def task_content(task: str, include_path: str | None) -> dict[str, str]:
    """Return the SHA-256 of each file that a user-defined task may read, by path; empty for lm-eval's own tasks.

    Raises:
        UserError: for a file that does not exist or is not YAML.
    """
    name = split_shots(task)[0]
    found: dict[Path, None] = {}
    if is_task_path(task):
        follow_includes(task_path(name), found)
    if include_path is not None:
        found |= dict.fromkeys(list_task_files(include_path))
    return {str(path): store.file_sha256(path) for path in found}


def task_path(name: str) -> Path:
    """Return the path of a task's file; ``~`` is the home folder."""
    return Path(name).expanduser()


def list_task_files(include_path: str) -> list[Path]:
    """List the yaml and Python files in a folder of tasks and its sub-folders.

    Raises:
        UserError: if it is not a folder, or holds too many files.
    """
    folder = task_path(include_path)
    if not folder.is_dir():
        raise UserError(f"eval.include_path: no folder at {folder}; set a folder of task yaml files")
    files = sorted(each for each in folder.rglob("*") if each.suffix in (".yaml", ".yml", ".py") and each.is_file())
    if len(files) > MOST:
        raise UserError(f"eval.include_path: {folder} has {len(files)} yaml and py files, at most {MOST} are allowed")
    return files


def follow_includes(path: Path, found: dict[Path, None]) -> None:
    """Add a yaml to ``found``, with the yamls it includes, the Python files of its functions and its local data."""
    if path in found:
        return
    if not path.is_file():
        raise UserError(f"eval.tasks: no file at {path} (relative to {Path.cwd()})")
    found[path] = None
    functions: list[str] = []
    task = parse_task(path, functions)
    for function in functions:
        module = path.parent / f"{function.rpartition('.')[0].replace('.', '/')}.py"
        if module.is_file():
            found[module] = None
    includes = task.get("include", [])
    for each in includes if isinstance(includes, list) else [includes]:
        follow_includes(path.parent / task_path(str(each)), found)
    for text in nested_texts([task.get("dataset_path"), task.get("dataset_kwargs")]):
        local = task_path(text)
        found |= dict.fromkeys([local] if local.is_file() else regular_files(local))


def regular_files(folder: Path) -> list[Path]:
    """List the regular files of a folder; empty if it is not a folder."""
    return sorted(each for each in folder.rglob("*") if each.is_file()) if folder.is_dir() else []


def parse_task(path: Path, functions: list[str]) -> dict[str, Any]:
    """Read a task's yaml without running code, and add the functions that it names to ``functions``.

    Raises:
        UserError: if it is not the YAML of a task.
    """

    class Loader(yaml.SafeLoader):
        """YAML loader that reads ``!function`` as text."""

    def function(_: yaml.SafeLoader, node: yaml.Node) -> str:
        functions.append(str(node.value))
        return str(node.value)

    Loader.add_constructor("!function", function)
    try:
        task = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"eval.tasks: {path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(task, dict):
        raise UserError(f"eval.tasks: {path} is not an lm-eval task: it has no keys such as task and dataset_path")
    return task


def nested_texts(value: Any) -> Iterator[str]:
    """Yield all texts in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from nested_texts(each)


def require_command_line(tasks: Iterable[str], include_path: str | None, overrides: Sequence[str]) -> None:
    """Check that the command line, not a config file, names each task yaml, because a yaml can run code.

    Raises:
        UserError: naming the path that is missing on the command line.
    """
    said = [override for override in overrides if "eval." in override.partition("=")[0]]
    for key, path in [("tasks", split_shots(task)[0]) for task in tasks if is_task_path(task)] + [
        ("include_path", include_path)
    ]:
        if path is not None and not any(path in override for override in said):
            raise UserError(
                f"eval.{key}: {path} comes from a config file. A task's yaml can run code, so set its path on the "
                f"command line: eval.{key}=..."
            )
