"""The tests' processes import as much as a run does, and leave as little garbage."""

import gc
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

gc.set_threshold(700, 10, 1000)  # as in run.py

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
DEPRECATIONS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")


def pytest_configure(config):
    """Libraries' warnings are errors only in the versions of constraints.txt; our own are errors always."""
    if not differing():
        return
    for line in ("default", "error:::depthcut", *(f"default::{each}" for each in DEPRECATIONS)):
        config.addinivalue_line("filterwarnings", line)


def pytest_terminal_summary(terminalreporter):
    """Name the versions that are not those of constraints.txt."""
    if found := differing():
        terminalreporter.write_line(f"not the versions of constraints.txt: {', '.join(found)}")


def differing() -> list[str]:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    wanted = dict(line.split("==") for line in lines if not line.startswith("#"))
    found = {name: installed(name) for name in wanted}
    return [f"{name} {found[name]}" for name in wanted if found[name] not in (None, wanted[name])]


def installed(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None
