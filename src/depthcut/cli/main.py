"""The command line: compose the config under depthcut's rules, then run one point or a sweep of them."""

import argparse
import gc
import logging
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from depthcut.cli import help_text, point
from depthcut.cli.arguments import parse_arguments
from depthcut.cli.composition import Loader, without_hydra
from depthcut.cli.refusals import refuse_deleted_folder
from depthcut.runtime import documents, failures, progress, validation
from depthcut.runtime.documents import DamagedError
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import quote_paths

Task = Callable[[DictConfig], Any]
COMMANDS = {"report": "depthcut.report.__main__", "mergekit": "depthcut.study.mergekit"}
"""Subcommands: the module whose ``main`` runs each."""
# Where this package is installed, bitsandbytes and transformers fetch code from the hub and run it.
sys.modules.setdefault("kernels", None)  # pyright: ignore[reportArgumentType, reportCallIssue]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # which says that it is not there


def run_command(task: Task, words: Sequence[str]) -> None:
    """Do what the command line ``words`` asks for; ``task`` runs one point.

    Raises:
        UserError: for a mistake in it, before anything heavy is loaded.
    """
    asked = parse_arguments([quote_paths(word) for word in words])
    if asked.version:
        print(f"depthcut {version('depthcut')}")
    elif asked.help:
        print(help_text.render_help(asked.overrides), end="")
    elif asked.config:
        refuse_deleted_folder()
        task(read_point_config(Path(asked.config), asked))
    elif asked.cfg:
        refuse_deleted_folder()
        cfg = Loader(asked.config_dir).load_configuration("config", asked.overrides, RunMode.RUN)
        print(OmegaConf.to_yaml(without_hydra(cfg), resolve=asked.resolve), end="")
    else:
        refuse_deleted_folder()
        loader = Loader(asked.config_dir)
        (run_sweep if asked.multirun else run_point)(loader, task, asked.overrides)


def read_point_config(path: Path, asked: argparse.Namespace) -> DictConfig:
    """Read the config of a point, as its config.yaml holds it.

    Raises:
        UserError: if the file cannot be read, or something else is said beside it.
    """
    if asked.overrides or asked.multirun:
        raise UserError("--config FILE accepts no overrides: it contains the whole config of a point")
    try:
        found: Any = OmegaConf.create(documents.read_yaml(path))
    except FileNotFoundError:
        raise UserError(f"--config: no file at {path}") from None
    except DamagedError as error:
        raise UserError(f"--config: {path} is not a config ({error.why}); correct the file") from None
    require_own_tasks(found, [])
    return found


def require_own_tasks(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Check the whole config, and that only the command line names files of lm-eval tasks."""
    from depthcut.config import build

    build.require_tasks_of_command_line(build.build_experiment(composed), overrides)


def compose_config(loader: Loader, overrides: Sequence[str]) -> DictConfig:
    """Compose the config of one point.

    Raises:
        UserError: for whatever cannot be composed, or has an effect in a sweep only.
    """
    for each in loader.parse(overrides):
        if is_launcher_option(each):
            raise UserError(f"{each.input_line} only has an effect with -m")
    return without_hydra(loader.load_configuration("config", list(overrides), RunMode.RUN))


def run_point(loader: Loader, task: Task, overrides: Sequence[str]) -> None:
    """Run one point here."""
    composed = compose_config(loader, overrides)
    require_own_tasks(composed, overrides)
    task(composed)


def compose_launcher_config(loader: Loader, overrides: Iterable[Override]) -> DictConfig:
    """Compose the config that the launcher is built from; its points have configs of their own.

    Raises:
        UserError: as :func:`compose_config`.
    """
    words = [str(each.input_line) for each in overrides if is_launcher_option(each)]
    return loader.load_configuration("config", words, RunMode.MULTIRUN)


def is_launcher_option(override: Override) -> bool:
    """Return whether an override is an option of the launcher."""
    return override.key_or_group.startswith("hydra")


def run_sweep(loader: Loader, task: Task, overrides: Sequence[str]) -> None:
    """Hand every point of a sweep to the launcher."""
    from depthcut.cli.expansion import expand_sweep

    parsed = loader.parse(overrides)
    config = compose_launcher_config(loader, parsed)
    points, notes = expand_sweep(loader, config, [each for each in parsed if not is_launcher_option(each)])
    for note in notes:
        progress.print_line(note)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    launcher.launch(points, initial_job_idx=0)


def main() -> int:
    """Run the command line of this process; return its exit status."""
    gc.set_threshold(700, 10, 1000)  # imports leave no garbage; to look for it among all that there is took 2 s of 9
    return failures.run_guarded(partial(dispatch, sys.argv[1:]))


def dispatch(words: Sequence[str]) -> None:
    """Run a subcommand, or else what the overrides ask for.

    Raises:
        UserError: for a mistake in the command line.
    """
    first = words[0] if words else ""
    if first in COMMANDS:
        import_module(COMMANDS[first]).main(words[1:])
    elif re.fullmatch(r"[a-z]+", first):
        raise UserError(
            f"{first}: no such command, and not an override, which is KEY=VALUE. "
            f"{validation.suggest_choices(first, [*COMMANDS])}"
        )
    else:
        run_command(point.run_point, words)
