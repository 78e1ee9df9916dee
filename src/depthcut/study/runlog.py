"""Output of a run: short lines in the terminal; the same with times and tracebacks in the point's run.log."""

import logging
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from typing_extensions import override

from depthcut.report import table
from depthcut.runtime.progress import console
from depthcut.study.run import Run

log = logging.getLogger("depthcut")
NOISY_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "bitsandbytes",
    "httpx",
    "datasets",
    "huggingface_hub",
)


class LogFile(logging.FileHandler):
    """A log file that is silently truncated by a full disk, because the run reports that error itself."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    @override
    def close(self) -> None:
        with suppress(OSError):
            super().close()


def print_record(record: dict[str, Any], folder: Path, remarks: Sequence[str] = ()) -> None:
    """Print a record as a table, remarks on the run, and the path of the record."""
    out = Console()
    out.print(table.record_table(record))
    for line in (*table.healing_findings(record), *remarks):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(f"record: {folder / 'record.json'}", highlight=False, soft_wrap=True)


@contextmanager
def log_to_point(run: Run) -> Generator[None]:
    """Log to the terminal and to the point's run.log."""
    terminal = RichHandler(
        console=console,
        show_path=False,
        show_level=False,
        show_time=False,
        markup=False,
        highlighter=None,
        level=logging.INFO,
    )
    file = LogFile(run.folder / "run.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    level, log.propagate = log.level, False
    log.setLevel(logging.DEBUG)
    for handler in (terminal, file):
        log.addHandler(handler)
    try:
        with quiet_libraries():
            log.info("point %s on %s", run.digest[:8], run.device)
            yield
    except KeyboardInterrupt:
        log.removeHandler(terminal)
        log.info("stopped by Ctrl-C")
        raise
    except BaseException:
        log.removeHandler(terminal)
        log.exception("stopped by an error")
        raise
    finally:
        for handler in (terminal, file):
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
        log.propagate = True


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Keep other libraries' notices out of the terminal; their errors still show."""
    from depthcut.model.checkpoint import loading  # which imports torch

    levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), loading.quiet_transformers():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
