"""One self-contained HTML file: the data, the script that draws it, and plotly.js; the page fetches nothing."""

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from depthcut.report import bundle, cells, plotlyjs
from depthcut.runtime import store

# A name between two "@". The space around it is not part of a script, whose hash the policy holds.
PLACEHOLDER = re.compile(r"\s*@([A-Z]+)@\s*")


def write_page(data: dict[str, Any], path: Path) -> None:
    """Write the page of :func:`depthcut.report.data.page_data`."""
    store.write_text(path, cells.encodable(page_html(data)))


def page_html(data: dict[str, Any]) -> str:
    """Return the page as HTML. Its content policy allows its own two scripts only, and no loading."""
    script = page_script()
    # Only "<" is special in a script element; JSON allows the escaped form.
    blob = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "POLICY": content_policy(script, served=bool(data.get("follow"))),
        "TITLE": html.escape(str(data["title"])),
        "STYLE": static_text("page.css"),
        "DATA": blob,
        "PLOTLY": plotlyjs.plotly_source(),
        "SCRIPT": script,
    }
    pieces = PLACEHOLDER.split(static_text("page.html"))
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def content_policy(script: str, served: bool) -> str:
    """Return the content-security policy. Plotly sets inline styles, and saves its pictures from data and blob URLs."""
    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{script_hash(plotlyjs.plotly_source())}' 'sha256-{script_hash(script)}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "connect-src": "'self'" if served else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def script_hash(script: str) -> str:
    """Return a script's hash in the form of a content policy."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def page_script() -> str:
    """Return the page's script, bundled from its modules."""
    return bundle.bundle_modules("main.js", static_text)


@cache
def static_text(name: str) -> str:
    """Return the text of a static file."""
    return (files("depthcut.report") / "static" / name).read_text(encoding="utf-8")
