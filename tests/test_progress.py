"""Progress: the time left for slow steps, and the same log with and without a terminal."""

import io
import logging
import time

import pytest
from rich.console import Console

from depthcut.runtime import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=120))
    return screen


def test_long_steps_show_the_time_left(terminal: io.StringIO) -> None:
    del terminal
    meter = progress.Meter("slow", 12)
    now = time.monotonic()
    meter.bar.get_time = lambda: now  # the clock of the bar
    meter.bar.start_task(meter.task)
    for _ in range(5):
        now += 60
        meter.step()
        remaining = meter.bar.tasks[0].time_remaining
    assert remaining == pytest.approx(7 * 60, rel=0.3)


@pytest.mark.parametrize("shown", [True, False])
def test_log_has_the_steps_with_and_without_bar(
    shown: bool, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    del terminal
    if not shown:
        monkeypatch.setattr(progress, "console", Console(file=io.StringIO()))
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    with caplog.at_level(logging.DEBUG, "depthcut"), progress.Meter("healing", 3) as meter:
        for loss in (3, 2, 1):
            meter.step(f"loss {loss}")
    told = [(each.levelno, each.getMessage()) for each in caplog.records]
    level = logging.DEBUG if shown else logging.INFO  # run.log takes both, the terminal shows the second
    assert told == [(level, f"healing: {step} of 3 loss {4 - step}") for step in (1, 2, 3)]
