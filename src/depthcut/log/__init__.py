"""Loggers: who else hears of a run. The record and ``heal.csv`` are always written."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.study.lab import Lab


@strict
class Log(ABC):
    """Hears of the healing curve and of the finished record."""

    @abstractmethod
    def loggers(self, lab: "Lab") -> list[Any]:
        """Lightning loggers for the healing run."""

    @abstractmethod
    def finish(self, lab: "Lab", record: dict[str, Any]) -> None:
        """Hear the whole record, once it is on the disk."""

    @abstractmethod
    def again(self, lab: "Lab", record: dict[str, Any]) -> None:
        """Hear of a record that was on file already."""
