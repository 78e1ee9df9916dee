"""One question."""

from typing import NamedTuple


class Question(NamedTuple):
    """A prompt, its continuations after a space, and the index of the correct one."""

    prompt: str
    choices: list[str]
    answer: int
