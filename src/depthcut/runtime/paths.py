"""Paths in options: ``~`` is the home folder; ``=``, spaces and parentheses need no quotes on the command line."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

expanded = os.path.expanduser  # leaves ``~nobody`` unchanged, where pathlib raises
PathText = Annotated[str, StringConstraints(min_length=1), AfterValidator(expanded)]
"""A path, or a glob pattern, in a config."""

OPTION = re.compile(
    r"(?P<key>[+]{0,2}(?:outputs|model\.path|prune\.path|heal\.init_from|eval\.include_path"
    r"|(?P<list>data\.\w+\.paths|eval\.perplexity\.texts\.[\w.-]+\.paths)))=(?P<value>.*)",
    re.DOTALL,
)
QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|str|extend_list)\(")
PLAIN = re.compile(r"[A-Za-z0-9_/\\+.$%*@?|: -]*")  # text that Hydra reads without quotes
NUMBER = re.compile(r"[0-9_]+([.e][0-9_]+)?")  # a number, such as a digest without letters


def quote_paths(word: str) -> str:
    """Quote each path in a command-line argument that Hydra would not read literally.

    Other arguments, functions and interpolations are unchanged. A comma still separates the values of a sweep.
    """
    option = OPTION.fullmatch(word)
    if option is None or FUNCTION.match(option["value"]):
        return word
    breaks = r",\[\]" if option["list"] else ","
    return f"{option['key']}={re.sub(rf'{QUOTED}|[^{breaks}]+', _quote_match, option['value'])}"


def _quote_match(found: re.Match[str]) -> str:
    text = found[0].strip()
    if text[:1] in ("'", '"'):
        return text[0] + expanded(text[1:-1]) + text[-1]
    text = expanded(text)
    if "${" in text or (PLAIN.fullmatch(text) and not NUMBER.fullmatch(text)):
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda each: each[1] * 2 + each[2].replace("'", "\\'"), text)
    return f"'{escaped}'"
