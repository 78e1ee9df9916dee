"""Loggers: destinations of a run's results other than the record and ``heal.csv``, which are always written."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

from depthcut.record.point import Point
from depthcut.runtime.strict import Method, strict


class RunInfo(Point, Protocol):
    """The properties of a run that loggers read.

    Attributes:
        scored: whether the plan depends on the metric's scores.
    """

    @property
    def scored(self) -> bool: ...


@strict
class Log(Method, ABC):
    """Base class of loggers, which receive the healing curve and the finished record."""

    @abstractmethod
    def loggers(self, point: "RunInfo") -> list[Any]:
        """Return Lightning loggers for the healing run."""

    @abstractmethod
    def finish(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Log the whole record, once it is on disk."""

    @abstractmethod
    def again(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Log a record that was already on disk."""
