"""Command lines of subcommands, whose mistakes are one line."""

import argparse
from typing import NoReturn

from typing_extensions import override

from depthcut.runtime.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports errors in one line, as the rest of depthcut does."""

    @override
    def error(self, message: str) -> NoReturn:
        """Raise the error as a UserError."""
        raise UserError(f"{message}; {self.format_usage().strip()}")
