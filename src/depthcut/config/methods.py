"""Build the methods that a config names, each a class of its group, without running anything else that it may name."""

import dataclasses
import re
from importlib import import_module
from inspect import isabstract
from typing import Any

from pydantic import ValidationError

from depthcut.config import values as config_values
from depthcut.data import Source
from depthcut.eval import Eval
from depthcut.heal import Heal
from depthcut.log import Log
from depthcut.metric import Metric
from depthcut.model import Model
from depthcut.prune import Prune
from depthcut.replace import Replace
from depthcut.runtime import validation
from depthcut.runtime.errors import UserError

GROUPS: dict[str, type[Any]] = {
    "model": Model,
    "data": Source,
    "metric": Metric,
    "prune": Prune,
    "replace": Replace,
    "heal": Heal,
    "eval": Eval,
    "log": Log,
}
LARGEST = 2**32
"""No option of a method is a larger whole number; seeds of numpy are below it."""


def build_method(path: str, node: Any) -> Any:
    """Build the method at ``path``, such as ``metric`` or ``data.train``.

    Raises:
        UserError: for a foreign class, an unknown key, a wrong type, word or range.
    """
    choices = f"choose one of conf/{path.replace('.', '/')}"
    if not isinstance(node, dict):
        raise UserError(
            f"{path} must be a mapping of a method's options, got {validation.format_value(node)}; {choices}"
        )
    if "_target_" not in node:
        raise UserError(f"{path}._target_ is missing; {choices}")
    options = {str(key): value for key, value in node.items() if key != "_target_"}
    for key, value in options.items():
        config_values.refuse_targets(f"{path}.{key}", value)
    return construct_validated(path, method_class(path, node["_target_"]), options)


def method_class(path: str, target: Any) -> type[Any]:
    """Return the class that ``target`` names: a method of the group of ``path``, defined in the module that it names.

    Only that module is imported; anything else would let a config run code.

    Raises:
        UserError: for any other name, with the reason.
        ModuleNotFoundError: if the module itself imports a missing one.
    """
    group = path.partition(".")[0]
    found = (
        re.fullmatch(rf"(depthcut\.{group}(?:\.[a-z]\w*){{1,2}})\.([A-Z]\w*)", target)
        if isinstance(target, str)
        else None
    )
    if not found:
        raise UserError(f"{path}._target_ must name a class of depthcut.{group}, got {validation.format_value(target)}")
    module, name = found.groups()
    try:
        members = vars(import_module(module))
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{path}._target_: {module} does not exist") from error
    if name not in members:
        raise UserError(f"{path}._target_: {module} has no class {name}")
    if fault := method_fault(members[name], module, GROUPS[group]):
        raise UserError(f"{path}._target_: {target} {fault}")
    return members[name]


def method_fault(cls: Any, module: str, base: type[Any]) -> str | None:
    """Return why ``cls`` is not a method that ``module`` defines, or None."""
    if not isinstance(cls, type):
        return "is not a class"
    if cls.__module__ != module:
        return f"is defined in {cls.__module__}"
    if not issubclass(cls, base):
        return f"does not subclass {base.__name__}"
    if isabstract(cls):
        return f"is abstract: it does not define {', '.join(sorted(cls.__abstractmethods__))}"
    return None if "__dataclass_fields__" in vars(cls) else "is not decorated with @strict"


def construct_validated(path: str, cls: type[Any], values: dict[str, Any]) -> Any:
    """Construct ``cls``.

    Raises:
        UserError: for a value that it does not take, with the key as it is written in the config.
    """
    try:
        method = cls(**values)
    except ValidationError as error:
        raise UserError(validation.describe_validation_error(path, cls, error)) from error
    for each in dataclasses.fields(method):
        value = getattr(method, each.name)
        if any(isinstance(one, int) and abs(one) >= LARGEST for one in (value if isinstance(value, list) else [value])):
            key = f"{path}.{each.name}".removeprefix(".")
            raise UserError(f"{key} must be below {LARGEST}, got {validation.format_value(value)}")
    return method
