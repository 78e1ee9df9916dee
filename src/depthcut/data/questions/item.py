"""One question."""

from typing import NamedTuple


class Question(NamedTuple):
    """A prompt, what may follow it after a space, and which of these is right (0-based)."""

    prompt: str
    choices: list[str]
    answer: int
