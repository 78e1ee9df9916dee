"""Files only: ``heal.csv`` and ``record.json``."""

from typing import TYPE_CHECKING, Any

from depthcut.log import Log
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.log import RunInfo


@strict
class Csv(Log):
    """No further logging."""

    def loggers(self, point: "RunInfo") -> list[Any]:
        """Return no logger."""
        del point
        return []

    def finish(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Do nothing."""
        del point, record

    def again(self, point: "RunInfo", record: dict[str, Any]) -> None:
        """Do nothing."""
        del point, record
