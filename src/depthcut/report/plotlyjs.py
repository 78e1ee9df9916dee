"""plotly.js, changed so that it starts fast: of its 45 parts it starts those that the page draws, and is read once."""

import json
import re
from functools import cache

TRACE_KINDS = ("heatmap",)
"""Kinds of traces that the page draws and that are no part of plotly's core, as scatter is."""

# The list of parts that its last module registers, each by a call that starts it.
PARTS_PATTERN = re.compile(r"\.register\(\[((?:[\w$]+\(\),){20,}[\w$]+)\(\)\]\)")
# What it is all wrapped in, a function that the browser calls at once.
WRAPPER_PATTERN = re.compile(r"(.*?, )(\(\) => \{\n.*\n\})(\)\);\s*)", re.DOTALL)


@cache
def plotly_source() -> str:
    """The script. What is not found as it was when this was written is left as it is: slower, never another."""
    from plotly.offline import get_plotlyjs

    return escape_non_ascii(parse_once(register_lazily(get_plotlyjs())))


def register_lazily(script: str) -> str:
    """Start the parts one after the other until all of DRAWN are there; the others would take most of the time."""
    find = (
        "((parts,left)=>{const had=[];for(const part of parts){if(!left.size)break;"
        "const each=part();had.push(each);left.delete(each.name)}return had})"
    )
    wanted = f"new Set({json.dumps(TRACE_KINDS)})"
    return PARTS_PATTERN.sub(lambda found: f".register({find}([{found[1].replace('()', '')}],{wanted}))", script)


def parse_once(script: str) -> str:
    """Put the function that all is in into brackets: V8 reads it once then, else twice (v8.dev/blog/preparser)."""
    return WRAPPER_PATTERN.sub(r"\1(\2)\3", script)


def escape_non_ascii(script: str) -> str:
    """Write characters beyond ASCII as escapes; a few of them double what a browser keeps of the whole text."""
    return re.sub(r"[^\x00-\x7f]+", lambda found: json.dumps(found[0])[1:-1], script)
