"""Fast runs: one process has imported what a run needs, and forks for each run.

Each run is a process of its own, with its own files, signals and exit status, that does what ``python run.py`` does; of
its ten seconds seven are spared. What differs: all runs of one such process go through sets in the same order.
"""

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[1]


class Forked:
    """A running process, with the part of :class:`subprocess.Popen` that the tests use."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str], start: dict[str, str]) -> None:
        """Fork for ``run.py arguments``; ``start`` is the environment of the process that does so."""
        self.out, self.err = (TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self.status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps([arguments, environment]).encode()
        server = imported(tuple(start.items()))
        socket.send_fds(server, [request], [theirs.fileno(), self.out.fileno(), self.err.fileno()])
        theirs.close()
        self.pid, self.returncode = int(self.status.recv(99)), None
        for each in (self.out, self.err, self.status):
            weakref.finalize(self, each.close)  # a killed run is not always waited for

    def poll(self) -> int | None:
        """Return the exit status as Popen does, or None while it runs."""
        return self.wait_for(0.0)

    def wait_for(self, seconds: float | None) -> int | None:
        """The same, within ``seconds``; None waits for the end."""
        if self.returncode is None:
            self.status.settimeout(seconds)
            try:
                self.returncode = int(self.status.recv(99))
            except (BlockingIOError, TimeoutError):
                return None
            self.status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return the output."""
        if self.wait_for(timeout) is None:
            raise subprocess.TimeoutExpired("run.py", timeout or 0.0)
        said = [(each.seek(0), each.read())[1] for each in (self.out, self.err)]
        for each in (self.out, self.err):
            each.close()
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


@cache
def imported(start: tuple[tuple[str, str], ...]) -> socket.socket:
    """Start the process that imports; it ends when this process closes its end of the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    call = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(call, cwd=ROOT, env=dict(start), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(control: socket.socket) -> Any:
    """Fork for each request, and send its pid and exit status.

    In a forked process return the request; return None at the end.
    """
    at_work: dict[int, tuple[int, int]] = {}
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    while True:
        for ready, _ in waiting.poll():
            if ready in at_work:
                waiting.unregister(ready)
                number, told = at_work.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
                with suppress(BrokenPipeError):  # nobody waits for it
                    os.write(told, str(status).encode())
                os.close(told)
                os.close(ready)
                continue
            request, given, _, _ = socket.recv_fds(control, 1 << 20, 3)
            if not request:
                return None
            told, *said = given
            if not (number := os.fork()):
                for theirs, each in enumerate(said, 1):
                    os.dup2(each, theirs)
                os.closerange(3, 1024)
                return json.loads(request)
            os.write(told, str(number).encode())
            ended = os.pidfd_open(number)
            waiting.register(ended, select.POLLIN)
            at_work[ended] = number, told
            for each in said:
                os.close(each)


def ready() -> None:
    """Import what most runs do."""
    import gc
    import importlib

    from depthcut.study import runlog

    with runlog.quiet_libraries():
        for name in (
            "algorithm",
            "metric",
            "model.checkpoint.streaming",
            "heal.training.adapters",
            "heal.training.full_finetune",
        ):
            importlib.import_module(f"depthcut.{name}")
        importlib.import_module("transformers.models.llama.modeling_llama")
    gc.collect()
    gc.freeze()
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    others = [each for each in threads[1:] if each != "jemalloc_bg_thd"]  # pyarrow's, which starts again after a fork
    assert not others, f"{others}: a fork would copy the main thread alone"


def become(arguments: list[str], environment: dict[str, str]) -> None:
    """Do what ``python run.py arguments`` does."""
    import numpy as np

    os.environ.update(environment)
    np.random.seed()  # torch has a constant seed, random reseeds itself after a fork
    sys.argv = ["run.py", *arguments]
    sys.path[0] = str(ROOT)
    try:
        runpy.run_path("run.py", run_name="__main__")
    except SystemExit as end:
        threading._shutdown()
        atexit._run_exitfuncs()
        for each in (sys.stdout, sys.stderr):
            each.flush()
        os._exit(int(end.code or 0))  # tearing down the imports would touch, and therefore copy, all of their memory


if __name__ == "__main__":
    ready()
    if request := serve(socket.socket(fileno=int(sys.argv[1]))):
        become(*request)
