"""Run depthcut's commands in the tests as a user does: a process of its own, its output and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "200",
    "CUDA_VISIBLE_DEVICES": "",
}

# A whole run in seconds: a random model of 8 layers, text of the test's own.
UNHEALED = ("model=pico", "eval=[loss]", "data=files")
PICO = (*UNHEALED, "heal.steps=6", "heal.warmup=1", "heal.batch=4", "heal.micro_batch=2")


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``python run.py arguments``."""
    call = [sys.executable, str(ROOT / "run.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, cwd=ROOT, env={**ENVIRONMENT, **environment}, **pipes)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def kill_in_healing(outputs: Path, *arguments: str) -> None:
    """Start a run, and kill it as soon as its healing has left a checkpoint."""
    process = start(f"outputs={outputs}", *arguments)
    while not list(outputs.glob("main/*/heal/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, and see that it took a second of work at most: what takes longer is the import of these packages."""
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


def succeed(*arguments: str) -> dict[str, Any]:
    """Run it, see it end well, and return the one record of its study."""
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    outputs = next(each.partition("=")[2] for each in arguments if each.startswith("outputs="))
    records = sorted(Path(outputs).glob("main/*/record.json"), key=lambda path: path.stat().st_mtime)
    return {**json.loads(records[-1].read_text()), "folder": records[-1].parent}


def text_files(folder: Path) -> tuple[str, ...]:
    """A corpus for the three parts of the data: sentences of a small grammar, so that there is something to learn."""
    import random

    chance = random.Random(0)
    nouns = ["cat", "dog", "bird", "fish", "horse", "child", "river"]
    verbs = ["sees", "likes", "follows", "hears", "finds"]

    def sentence() -> str:
        return f"The {chance.choice(nouns)} {chance.choice(verbs)} the {chance.choice(nouns)}."

    lines = [json.dumps({"text": " ".join(sentence() for _ in range(12))}) for _ in range(1000)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return tuple(f"data.{part}.paths=[{folder}/corpus.jsonl]" for part in ("calibration", "train", "validation"))
