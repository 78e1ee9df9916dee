"""Files only: ``heal.csv`` and ``record.json``."""

from typing import TYPE_CHECKING, Any

from depthcut.log import Log
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.study.lab import Lab


@strict
class Csv(Log):
    """Nobody else hears."""

    def loggers(self, lab: "Lab") -> list[Any]:
        """None."""
        del lab
        return []

    def finish(self, lab: "Lab", record: dict[str, Any]) -> None:
        """Nothing to do."""
        del lab, record

    def again(self, lab: "Lab", record: dict[str, Any]) -> None:
        """Nothing to do."""
        del lab, record
