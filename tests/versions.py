"""Compare the installed versions with constraints.txt."""

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


@cache
def differing() -> list[str]:
    """Return the packages whose installed version is another, with that version; and Python, if it is not 3.11."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    wanted = dict(line.split("==") for line in lines if not line.startswith("#"))
    found = {name: installed(name) for name in wanted}
    python = [] if sys.version_info[:2] == (3, 11) else [f"python {sys.version.split()[0]}"]
    return python + [f"{name} {found[name]}" for name in wanted if found[name] not in (None, wanted[name])]


def installed(package: str) -> str | None:
    """Return the version of a package without its local part, or None."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def strict_python() -> tuple[str, ...]:
    """Return the options of Python that make warnings errors, where the libraries are known to give none."""
    return () if differing() else ("-W", "error")
