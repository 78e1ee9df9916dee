"""One self-contained HTML file: the data, the script that draws it, and plotly.js; nothing is fetched from anywhere."""

import base64
import hashlib
import html
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from depthcut.report import cells, plotlyjs
from depthcut.runtime import store

SCRIPTS = ("core", "lines", "figures", "curves", "falls", "layers", "more", "runs", "main")


def write_page(data: dict[str, Any], path: Path) -> None:
    """Write the page of :func:`depthcut.report.data.page_data`."""
    store.write_text(path, cells.encodable(page_html(data)))


def page_html(data: dict[str, Any]) -> str:
    """The page as HTML. Its content policy lets run just its own two scripts, and load nothing."""
    script = '"use strict";\n{\n' + "".join(static_text(f"{name}.js") for name in SCRIPTS) + "}\n"
    # Of what stands in a script element only "<" matters; in JSON it may be written so.
    blob = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "POLICY": content_policy(script, served=bool(data.get("follow"))),
        "TITLE": html.escape(str(data["title"])),
        "STYLE": static_text("page.css"),
        "DATA": blob,
        "PLOTLY": plotlyjs.plotly_source(),
        "SCRIPT": script,
    }
    pieces = static_text("page.html").split("@")
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def content_policy(script: str, served: bool) -> str:
    """The content-security policy. Plotly sets styles of its own; pictures are those it makes to be saved."""
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
    """A script's hash as a content policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def static_text(name: str) -> str:
    """A file of the page."""
    return (files("depthcut.report") / "static" / name).read_text(encoding="utf-8")
