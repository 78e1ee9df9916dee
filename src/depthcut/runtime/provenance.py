"""Code, packages and device behind a result."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("depthcut", "torch", "transformers", "peft", "bitsandbytes", "lightning", "lm_eval", "datasets")
SOURCE = Path(__file__).resolve().parents[1]


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_identity() -> str:
    """Return the digest of this package's modules, 16 hex digits; unlike a commit, it covers uncommitted edits."""
    content = hashlib.sha256()
    for module in sorted(SOURCE.rglob("*.py")):
        content.update(f"{module.relative_to(SOURCE)} {hashlib.sha256(module.read_bytes()).hexdigest()}\n".encode())
    return content.hexdigest()[:16]


def source_commit() -> str | None:
    """Return the commit of this package's checkout, with ``+changes`` if it was edited; None without git.

    An installed package that lies inside another project's repository has no commit.
    """
    try:
        if Path(git_output(SOURCE, "rev-parse", "--show-toplevel")) != SOURCE.parents[1]:
            return None
        head = git_output(SOURCE, "rev-parse", "HEAD")
        return head + ("+changes" if git_output(SOURCE, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def git_output(folder: Path, *words: str) -> str:
    """Return the output of a git command."""
    call = ["git", "-C", str(folder), *words]
    return subprocess.run(call, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def device_name(name: str) -> str:
    """Return the name of the CPU or GPU."""
    if name.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name()
    model = next((line for line in cpuinfo_lines() if line.startswith("model name")), "")
    return f"{model.partition(':')[2].strip() or platform.machine()}, {os.cpu_count()} cores"


def cpuinfo_lines() -> list[str]:
    """Return the lines of /proc/cpuinfo; empty if it does not exist."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
