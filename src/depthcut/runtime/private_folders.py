"""Folders readable by their owner only, if the environment holds a token that a mistake could write to them."""

import os
import re
from pathlib import Path

SECRET = re.compile("TOKEN|API_?KEY|ACCESS_KEY|SECRET|PASSW", re.IGNORECASE)


def make_private_folder(folder: Path) -> None:
    """Create a folder and its parents; if the environment holds a token or password, only the user can read it."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700 if holds_secret() else 0o777, exist_ok=True)


def holds_secret() -> bool:
    """Return whether a non-empty environment variable has the name of a secret."""
    return any(value and SECRET.search(name) for name, value in os.environ.items())
