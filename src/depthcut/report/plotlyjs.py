"""plotly.js, changed so that it starts fast: of its 45 parts it starts those that the page draws, and is read once."""

import json
import re
from functools import cache

DRAWN = ("heatmap",)
"""Kinds of traces that the page draws and that are no part of plotly's core, as scatter is."""

# The list of parts that its last module registers, each by a call that starts it.
PARTS = re.compile(r"\.register\(\[((?:[\w$]+\(\),){20,}[\w$]+)\(\)\]\)")
# What it is all wrapped in, a function that the browser calls at once.
WRAPPED = re.compile(r"(.*?, )(\(\) => \{\n.*\n\})(\)\);\s*)", re.DOTALL)


@cache
def source() -> str:
    """The script. What is not found as it was when this was written is left as it is: slower, never another."""
    from plotly.offline import get_plotlyjs

    return plain(read_once(needed(get_plotlyjs())))


def needed(script: str) -> str:
    """Start the parts one after the other until all of DRAWN are there; the others would take most of the time."""
    find = (
        "((parts,left)=>{const had=[];for(const part of parts){if(!left.size)break;"
        "const each=part();had.push(each);left.delete(each.name)}return had})"
    )
    wanted = f"new Set({json.dumps(DRAWN)})"
    return PARTS.sub(lambda found: f".register({find}([{found[1].replace('()', '')}],{wanted}))", script)


def read_once(script: str) -> str:
    """Put the function that all is in into brackets: V8 reads it once then, else twice (v8.dev/blog/preparser)."""
    return WRAPPED.sub(r"\1(\2)\3", script)


def plain(script: str) -> str:
    """Write characters beyond ASCII as escapes; a few of them double what a browser keeps of the whole text."""
    return re.sub(r"[^\x00-\x7f]+", lambda found: json.dumps(found[0])[1:-1], script)
