"""Loggers: who else hears of a run. The record and ``heal.csv`` are always written."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

from depthcut.runtime.strict import strict


class RunInfo(Protocol):
    """A run, as a logger hears of it.

    Attributes:
        digest: name of the point.
        folder: the point's.
        study: the folder of all points of the study.
        config: the composed config.
        scored: whether the plan depends on the metric's scores.
    """

    @property
    def digest(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def study(self) -> Path: ...

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def scored(self) -> bool: ...


@strict
class Log(ABC):
    """Hears of the healing curve and of the finished record."""

    @abstractmethod
    def loggers(self, point: "RunInfo") -> list[Any]:
        """Lightning loggers for the healing run."""

    @abstractmethod
    def finish(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Hear the whole record, once it is on the disk."""

    @abstractmethod
    def again(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Hear of a record that was on file already."""
