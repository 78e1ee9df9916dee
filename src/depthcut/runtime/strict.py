"""The one way to declare a method: a frozen pydantic dataclass that takes no unknown key and converts nothing."""

from typing import Annotated, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Rank = Annotated[int, Field(ge=1, le=65_536)]
Length = Annotated[int, Field(gt=0, le=10_000_000)]
"""Tokens of a sequence."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def strict(cls: type[T]) -> type[T]:
    """Make ``cls`` a dataclass whose fields are its knobs: frozen, keyword-only, checked, without coercion.

    Raises (on construction):
        pydantic.ValidationError: for an unknown key, a missing one, a wrong type (``False`` is no 0.0) or range.
    """
    rules = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return dataclass(cls, frozen=True, kw_only=True, config=rules)  # pyright: ignore[reportReturnType]
