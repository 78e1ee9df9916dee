"""W&B's real client in the tests: with an empty home, and no server but the given one."""

import os
import subprocess
import sys
from pathlib import Path

from running import ENVIRONMENT, ROOT

KEY = "0123456789" * 4
NOWHERE = "http://127.0.0.1:9"

# The developer's W&B settings must not reach the tests.
for name in [name for name in ENVIRONMENT if name.startswith("WANDB_") or name == "NETRC"]:
    del ENVIRONMENT[name]


def client(home: Path, url: str = "") -> dict[str, str]:
    """Return the environment of a client with an empty home; without ``url`` it has no key."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    known = {"HOME": str(home), "PATH": path, "WANDB_BASE_URL": url or NOWHERE, "WANDB_ERROR_REPORTING": "false"}
    known["WANDB__FILE_STREAM_TRANSMIT_INTERVAL"] = "0.1"  # seconds; else 15
    return known | ({"WANDB_API_KEY": KEY} if url else {})


def tool(url: str, home: Path, *words: str) -> str:
    """Run a W&B command in the folder of run.py and return its output."""
    call = [sys.executable, "-m", "wandb", *words]
    environment = {**ENVIRONMENT, **client(home, url), "WANDB_DIR": str(home)}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


BEGIN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from composing import composed
from depthcut.record import state
from depthcut.config import build
from depthcut.config import experiment
from depthcut.study import recording
from depthcut.study.run import open_run
configs = [composed(*sys.argv[3:], f"prune.frac={frac}") for frac in sys.argv[2].split(",")]
points = [open_run(build.build_experiment(config)) for config in configs]
for point in points:
    point.folder.mkdir(parents=True, exist_ok=True)
    point.experiment.log.start(point)
print("begun", flush=True)
sys.stdin.readline()
point.experiment.log.finish(point, state.read_record(Path(sys.argv[1])))
"""


def begun(record: Path, fractions: str, *command: str, **environment: str) -> subprocess.Popen[str]:
    """Start the W&B runs of points in one process; a line on stdin ends the last with the record of a folder."""
    call = [sys.executable, "-c", BEGIN, str(record), fractions, *command]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(call, cwd=ROOT, env={**ENVIRONMENT, **environment}, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "begun\n", process.communicate()
    return process
