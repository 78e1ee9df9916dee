"""Set the tests' processes up like those of a run: the same imports, the same clean-up."""

import gc
import signal

from versions import differing

gc.set_threshold(700, 10, 1000)  # as in run.py
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background

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
