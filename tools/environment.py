"""Create a virtual environment for this checkout, or write constraints.txt.

    python tools/environment.py .venv                     exactly the versions of constraints.txt
    python tools/environment.py .venv-newest --newest     the newest versions that pyproject.toml allows
    python tools/environment.py .venv-oldest --oldest     the oldest ones
    python tools/environment.py .venv --lock              resolve again with its pip, write constraints.txt

Needs only the standard library. Interrupted, it resumes: pip keeps what it has downloaded.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
SPACE = 3.5  # GB of an environment with the CPU build of torch
HEADER = """\
# The exact versions of every package that depthcut and its tests need; `make lock` writes this file.
# Made with Python 3.11; it also resolves for 3.12 and 3.13. It serves CPU and CUDA builds of torch alike: a CUDA build
# brings further packages, whose versions torch itself fixes.
"""
REASONS = {
    r"No space left on device": "the disk is full: free about 4 GB (10 GB with a CUDA build of torch)",
    r"NewConnectionError|Max retries exceeded|name resolution|ConnectTimeout|ReadTimeout|ProxyError|SSLError"
    r"|Connection (?:refused|reset)|40[13] (?:Client )?Error|50\d (?:Server )?Error": "no package index can be reached",
}


class SetupError(Exception):
    """Error that ends the set-up with one line."""


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    which = parser.add_mutually_exclusive_group()
    for name in ("newest", "oldest", "lock"):
        which.add_argument(f"--{name}", action="store_true")
    asked = parser.parse_args()
    try:
        check_python()
        create(asked.folder)
        if asked.lock:
            lock(asked.folder)
        elif asked.newest and resolved(asked.folder) == versions(CONSTRAINTS):
            print(f"{CONSTRAINTS.name} holds the newest releases: `make test` tests them")
        else:
            constraints = None if asked.newest else oldest(asked.folder) if asked.oldest else CONSTRAINTS
            install(asked.folder, constraints)
    except SetupError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def check_python() -> None:
    """Refuse an interpreter that cannot run depthcut."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        version = sys.version.split()[0]
        raise SetupError(
            f"depthcut needs Python 3.11 to 3.13, this is {version}. Use another one: make PYTHON=python3.12 ..."
        )


def create(folder: Path) -> None:
    """Create the environment if it does not exist."""
    if python(folder).exists():
        return
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        raise SetupError("this Python has no venv module: apt install python3-venv, then try again") from None
    try:
        venv.create(folder, with_pip=True, clear=folder.exists())
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"cannot create {folder}: {getattr(error, 'strerror', None) or error}") from None


def python(folder: Path) -> Path:
    """Return the environment's interpreter."""
    return folder / "bin" / "python"


def install(folder: Path, constraints: "Path | None") -> None:
    """Install the checkout in editable mode, with its dependencies."""
    known = len(versions(CONSTRAINTS)) if CONSTRAINTS.exists() else 150
    free = shutil.disk_usage(folder).free / 1e9
    begun_before = any(folder.glob("lib/python*/site-packages/torch"))  # most of the space is already used
    if free < SPACE and not begun_before:
        raise SetupError(f"{folder} needs about {SPACE} GB of disk, {free:.1f} GB free")
    print(f"setting up {folder}: {known} packages, 2 to 10 minutes (log: {folder}/setup.log)", flush=True)
    begun = time.monotonic()
    words = ["install", "--upgrade", "--upgrade-strategy", "only-if-needed" if constraints else "eager"]
    pip(folder, [*words, "-e", f"{ROOT}[dev]"], constraints, known)
    print(f"{folder} is ready after {time.monotonic() - begun:.0f} s", flush=True)


def pip(folder: Path, words: "list[str]", constraints: "Path | None", known: int = 0) -> None:
    """Run pip, with its output in the environment's setup.log and a counter on a terminal."""
    environment = dict(os.environ)
    if constraints:  # in the environment variable instead of an option, to apply to package builds, too
        environment.update(PIP_CONSTRAINT=str(constraints), PIP_BUILD_CONSTRAINT=str(constraints))
    call = [str(python(folder)), "-m", "pip", *words, "--disable-pip-version-check", "--progress-bar", "off"]
    collected = 0
    with (folder / "setup.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            collected += line.startswith("Collecting ")
            if sys.stdout.isatty() and known:
                stage = "installing" if line.startswith("Installing collected") else "resolving and downloading"
                print(f"\r\033[K  {stage}: {collected} packages so far", end="", flush=True)
        if sys.stdout.isatty() and known:
            print("\r\033[K", end="", flush=True)
    if process.wait():
        raise SetupError(reason(folder / "setup.log"))


def reason(log: Path) -> str:
    """Return the reason why pip failed and a remedy, in one line."""
    text = log.read_text(encoding="utf-8")
    again = "then run the same command again; it continues where it stopped"
    for pattern, words in REASONS.items():
        if re.search(pattern, text):
            return f"{words}; {again} (log: {log})"
    if conflict := re.search(r"The conflict is caused by:\n((?: +.+\n)+)", text):
        return f"conflicting versions: {'; '.join(conflict[1].rstrip().splitlines())} (log: {log})"
    errors = re.findall(r"^ERROR: (.+)", text, flags=re.MULTILINE)
    return f"pip failed: {errors[-1] if errors else text.strip().splitlines()[-1:]} (log: {log})"


def lock(folder: Path) -> None:
    """Write the newest versions to constraints.txt."""
    found = resolved(folder)
    CONSTRAINTS.write_text(HEADER + "".join(f"{name}=={found[name]}\n" for name in sorted(found)), encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(found)} packages")


def resolved(folder: Path) -> "dict[str, str]":
    """Return the newest compatible versions, by package, without installing them."""
    report = folder / "report.json"
    pip(folder, ["install", "--dry-run", "--ignore-installed", "--report", str(report), "-e", f"{ROOT}[dev]"], None)
    found = {
        each["metadata"]["name"].lower().replace("_", "-"): each["metadata"]["version"].partition("+")[0]
        for each in json.loads(report.read_text(encoding="utf-8"))["install"]
    }
    found.pop("depthcut")
    return found


def oldest(folder: Path) -> Path:
    """Return constraints that allow only the lowest version of each direct dependency in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    bounds = re.findall(r'^\s+"([A-Za-z0-9_-]+)>=([0-9.]+)[^"]*",', text, flags=re.MULTILINE)
    path = folder / "oldest.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in bounds), encoding="utf-8")
    return path


def versions(path: Path) -> "dict[str, str]":
    """Return the versions in a constraints file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


if __name__ == "__main__":
    sys.exit(main())
