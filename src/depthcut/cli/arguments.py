"""The flags of the command line, read without Hydra."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from depthcut.runtime.errors import UserError


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the flags of the command line; what is left are overrides.

    Raises:
        UserError: for a flag that does not exist.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config")
    for flag in ("--resolve", "--version"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(words)


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports an error in one line with the flags."""

    def error(self, message: str) -> NoReturn:
        """Refuse a flag, or its value."""
        flags = "-m, --help, --version, --cfg job, --resolve, --config FILE and --config-dir FOLDER"
        raise UserError(f"{message}. The flags are {flags}")
