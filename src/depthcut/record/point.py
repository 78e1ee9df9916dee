"""A point of a study, as those see it who write into its folder."""

from pathlib import Path
from typing import Any, Protocol


class Point(Protocol):
    """A point of a study.

    Attributes:
        digest: its name.
        folder: its own.
        study: the folder of all points of the study.
        config: the composed config.
    """

    @property
    def digest(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def study(self) -> Path: ...

    @property
    def config(self) -> dict[str, Any]: ...
