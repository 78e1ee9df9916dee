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


def write(data: dict[str, Any], path: Path) -> None:
    """Write the page of :func:`depthcut.report.data.of`."""
    store.write_text(path, cells.encodable(text(data)))


def text(data: dict[str, Any]) -> str:
    """The page as HTML. Its content policy lets run just its own two scripts, and load nothing."""
    script = '"use strict";\n{\n' + "".join(static(f"{name}.js") for name in SCRIPTS) + "}\n"
    # Of what stands in a script element only "<" matters; in JSON it may be written so.
    blob = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "POLICY": policy(script, served=bool(data.get("follow"))),
        "TITLE": html.escape(str(data["title"])),
        "STYLE": static("page.css"),
        "DATA": blob,
        "PLOTLY": plotlyjs.source(),
        "SCRIPT": script,
    }
    pieces = static("page.html").split("@")
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def policy(script: str, served: bool) -> str:
    """The content-security policy. Plotly sets styles of its own; pictures are those it makes to be saved."""
    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest(plotlyjs.source())}' 'sha256-{digest(script)}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "connect-src": "'self'" if served else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def digest(script: str) -> str:
    """A script's hash as a content policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def static(name: str) -> str:
    """A file of the page."""
    return (files("depthcut.report") / "static" / name).read_text(encoding="utf-8")
