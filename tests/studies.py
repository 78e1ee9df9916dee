"""Studies for the tests of the report: real ones of a pico model, and synthetic ones from the benchmark."""

import importlib.util
import json
import sys
from pathlib import Path

from running import PICO, ROOT, run, text_files


def bench(name: str):
    """Import a benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def real(folder: Path) -> Path:
    """Run a study of a pico model: two cuts, unhealed and healed."""
    words = ("name=real", "prune=block,deepest", "prune.frac=0.25", "export=none")
    done = run("-m", f"outputs={folder}/outputs", *PICO, *text_files(folder), *words)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "real"


def changed(path: Path, **fields) -> None:
    """Write a record with some fields changed."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
