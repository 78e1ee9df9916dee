"""Folders that only their owner can read, where the environment holds a token that a mistake could write into one."""

import os
import re
from pathlib import Path

SECRET = re.compile("TOKEN|API_?KEY|ACCESS_KEY|SECRET|PASSW", re.IGNORECASE)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it; it is the user's alone if the environment holds a token or a password."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700 if holds_secret() else 0o777, exist_ok=True)


def holds_secret() -> bool:
    """Return whether an environment variable is named like a secret, and is not empty."""
    return any(value and SECRET.search(name) for name, value in os.environ.items())
