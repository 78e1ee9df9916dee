"""plotly.js, patched to start fast: only the modules that the page draws with are started, and V8 parses it once."""

import json
import re
from functools import cache

TRACE_KINDS = ("heatmap",)
"""Trace kinds that the page draws, other than those of plotly's core such as scatter."""

# The list of modules that plotly's last module registers, each by a call that starts it.
PARTS_PATTERN = re.compile(r"\.register\(\[((?:[\w$]+\(\),){20,}[\w$]+)\(\)\]\)")
# The function around the whole script, which the browser calls at once.
WRAPPER_PATTERN = re.compile(r"(.*?, )(\(\) => \{\n.*\n\})(\)\);\s*)", re.DOTALL)


@cache
def plotly_source() -> str:
    """Return the patched script. A pattern that no longer matches leaves the script unchanged: slower, but correct."""
    from plotly.offline import get_plotlyjs

    return escape_non_ascii(parse_once(register_lazily(get_plotlyjs())))


def register_lazily(script: str) -> str:
    """Start modules one by one until all of TRACE_KINDS are registered; the others would take most of the time."""
    find = (
        "((parts,left)=>{const had=[];for(const part of parts){if(!left.size)break;"
        "const each=part();had.push(each);left.delete(each.name)}return had})"
    )
    wanted = f"new Set({json.dumps(TRACE_KINDS)})"
    return PARTS_PATTERN.sub(lambda found: f".register({find}([{found[1].replace('()', '')}],{wanted}))", script)


def parse_once(script: str) -> str:
    """Parenthesise the outer function: V8 then parses it once instead of twice (v8.dev/blog/preparser)."""
    return WRAPPER_PATTERN.sub(r"\1(\2)\3", script)


def escape_non_ascii(script: str) -> str:
    """Escape non-ASCII characters; a few of them double the memory that a browser needs for the whole text."""
    return re.sub(r"[^\x00-\x7f]+", lambda found: json.dumps(found[0])[1:-1], script)
