"""The declaration of a method: a frozen pydantic dataclass that takes no unknown key and converts nothing."""

import dataclasses
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Rank = Annotated[int, Field(ge=1, le=65_536)]
Length = Annotated[int, Field(gt=0, le=10_000_000)]
"""Tokens per sequence."""


class Method:
    """Base of all methods."""

    @property
    def word(self) -> str:
        """The word that selects the method on the command line: the name of its module."""
        return type(self).__module__.rpartition(".")[2]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def strict(cls: type[T]) -> type[T]:
    """Make ``cls`` a dataclass whose fields are its options: frozen, keyword-only, validated, without coercion.

    Raises:
        TypeError: if a field of a method has a default. All values are in the yaml, so a digest covers each of them.

    Raises (on construction):
        pydantic.ValidationError: for an unknown key, a missing key, a wrong type (``False`` is not 0.0) or range.
    """
    rules = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    made: Any = dataclass(cls, frozen=True, kw_only=True, config=rules)
    for each in dataclasses.fields(made) if issubclass(cls, Method) else ():
        if (each.default, each.default_factory) != (dataclasses.MISSING, dataclasses.MISSING):
            raise TypeError(f"{cls.__name__}.{each.name} has a default; write the value into the yaml instead")
    return made


def method_fields(method: Any) -> dict[str, Any]:
    """Return a method's class and options, except for those that change speed and memory only (``incidental``).

    An option added later (``optional``) is left out if it is null, because earlier digests must not change.
    """
    incidental, optional = (
        set[str]().union(*(vars(cls).get(kind, ()) for cls in type(method).__mro__))
        for kind in ("incidental", "optional")
    )
    values = {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}
    knobs = {
        name: value
        for name, value in values.items()
        if name not in incidental and not (name in optional and value is None)
    }
    return {"class": f"{type(method).__module__}.{type(method).__name__}", **knobs}
