"""Builds an experiment, and all its methods, from a composed config."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from depthcut.config import errors
from depthcut.config import values as config_values
from depthcut.config.experiment import Data, Experiment
from depthcut.config.methods import GROUPS, build_method, construct_validated
from depthcut.eval import Eval
from depthcut.eval.harness import Harness
from depthcut.eval.likelihood import task_files
from depthcut.runtime import validation
from depthcut.runtime.errors import UserError

PARTS = ("calibration", "train", "validation")


def build_experiment(cfg: Mapping[Any, Any]) -> Experiment:
    """Check a composed config and build its methods.

    Raises:
        UserError: one line that names the key, what was wanted and what was got.
    """
    node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    config_values.check_config_values(node)
    composed = resolve_config(node)
    fields = get_type_hints(Experiment).keys() - {"composed"}
    for key in composed:
        if key not in fields:
            raise UserError(validation.describe_missing_key(str(key), fields))
    values = {"eval": {}, **composed}  # Hydra leaves a group out of which nothing is chosen
    for group in (each for each in GROUPS if each in composed):
        read_group = {"data": build_sources, "eval": build_evaluations}.get(group, partial(build_method, group))
        values[group] = read_group(composed[group])
    return construct_validated("", Experiment, {**values, "composed": composed})


def require_tasks_of_command_line(x: Experiment, overrides: Sequence[str]) -> None:
    """Check that only the command line names files of lm-eval tasks: they can run code.

    Raises:
        UserError: naming a path that stands in a config file.
    """
    for each in x.eval.values():
        if isinstance(each, Harness):
            task_files.require_command_line(each.tasks, each.include_path, overrides)


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values, with every reference followed.

    Raises:
        UserError: for a value that is missing, or a reference that leads nowhere or to itself.
    """
    try:
        composed: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(errors.describe_omegaconf_error(error)) from error
    except RecursionError as error:
        raise UserError("config: a value refers to itself through ${...}; set a plain value") from error
    return composed


def build_sources(node: Any) -> Data:
    """Build the three texts.

    Raises:
        UserError: as :func:`build_method`.
    """
    if not isinstance(node, dict):
        raise UserError(f"data must be calibration, train and validation, got {validation.format_value(node)}")
    parts = {str(part): build_method(f"data.{part}", value) if part in PARTS else value for part, value in node.items()}
    return construct_validated("data", Data, parts)


def build_evaluations(node: Any) -> dict[str, Eval]:
    """Build the evaluations.

    A model's or an experiment's file may hold options of evaluations that are not chosen; they must exist.

    Raises:
        UserError: for an unknown key, a plain value instead of an evaluation, and as :func:`build_method`.
    """
    if not isinstance(node, dict):
        raise UserError(
            f"eval must be a list of evaluations, as in eval=[loss,harness], got {validation.format_value(node)}"
        )
    chosen = {key: value for key, value in node.items() if isinstance(value, dict) and "_target_" in value}
    left = {str(key): value for key, value in node.items() if key not in chosen}
    if left:
        config_values.refuse_unknown_options(left)
    return {key: build_method(f"eval.{key}", value) for key, value in chosen.items()}
