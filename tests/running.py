"""Run depthcut's commands as a user does: in a process, with its output and exit status."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from warm import Forked

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "200",
    "CUDA_VISIBLE_DEVICES": "",
}

# A whole run in seconds: a random model of 8 layers, on a test's own text.
UNHEALED = ("model=pico", "eval=[loss]", "data=files")
PICO = (*UNHEALED, "heal.steps=6", "heal.warmup=1", "heal.batch=4", "heal.micro_batch=2")


# Variables that are read only after the imports; any other change of the environment needs a fresh process.
LATE = re.compile("HOME|PATH|WANDB_.*|TORCHELASTIC_.*|MASTER_.*|(GROUP_|LOCAL_)?(RANK|WORLD_SIZE)")

# Pass one of these for a fresh process; they change only the hash seed.
ANEW = {"PYTHONHASHSEED": "1"}
AGAIN = {"PYTHONHASHSEED": "2"}


def start(*arguments: str, **environment: str) -> "subprocess.Popen[str] | Forked":
    """Start ``python run.py arguments``."""
    gpus = ENVIRONMENT.get("CUDA_VISIBLE_DEVICES") != ""  # a process that has looked for one must not fork
    if all(map(LATE.fullmatch, environment)) and not gpus:
        return Forked(arguments, environment, ENVIRONMENT)
    call = [sys.executable, str(ROOT / "run.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, cwd=ROOT, env={**ENVIRONMENT, **environment}, **pipes)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python run.py arguments`` and wait for it."""
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def run_two(*arguments: str) -> str:
    """Run the two processes that torchrun would start, and return the output of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    job |= {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"}
    both = [start(*arguments, RANK=each, LOCAL_RANK=each, **job) for each in ("0", "1")]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return "".join(said[0])


def start_torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Start two processes with torchrun, as one process group."""
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "run.py"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [sys.executable, *words, *arguments], cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes
    )


def run_torchrun(*arguments: str) -> str:
    """Run two processes with torchrun and return their output."""
    process = start_torchrun(*arguments)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def kill_in_healing(outputs: Path, *arguments: str, **environment: str) -> None:
    """Start a run, and kill it as soon as its healing has left a checkpoint."""
    process = start(f"outputs={outputs}", *arguments, **environment)
    while not list(outputs.glob("main/*/heal/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def run_bench(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a benchmark script."""
    call = [sys.executable, str(ROOT / "bench" / script), *map(str, arguments)]
    return subprocess.run(call, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it and assert that it imports no heavy package."""
    words = [sys.executable, "-c", LIGHT, *arguments]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    heavy = done.stdout.rpartition("heavy:")[2].split()
    assert not heavy, f"{heavy} were imported"
    return done


LIGHT = """
import atexit, runpy, sys
HEAVY = {"torch", "transformers", "lightning", "peft", "bitsandbytes", "datasets", "lm_eval", "wandb", "pandas"}
atexit.register(lambda: print("heavy:", *(HEAVY & set(sys.modules))))
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""


def succeed(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run it, assert that it succeeds, and return the newest record of its study."""
    done = run(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    outputs = next(each.partition("=")[2] for each in arguments if each.startswith("outputs="))
    records = sorted(Path(outputs).glob("main/*/record.json"), key=lambda path: path.stat().st_mtime)
    return {**json.loads(records[-1].read_text()), "folder": records[-1].parent}


def text_files(folder: Path) -> tuple[str, ...]:
    """Write a corpus of sentences from a small grammar, and return overrides that use it for all parts of the data."""
    import random

    chance = random.Random(0)
    nouns = ["cat", "dog", "bird", "fish", "horse", "child", "river"]
    verbs = ["sees", "likes", "follows", "hears", "finds"]

    def sentence() -> str:
        return f"The {chance.choice(nouns)} {chance.choice(verbs)} the {chance.choice(nouns)}."

    lines = [json.dumps({"text": " ".join(sentence() for _ in range(12))}) for _ in range(1000)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return tuple(f"data.{part}.paths=[{folder}/corpus.jsonl]" for part in ("calibration", "train", "validation"))
