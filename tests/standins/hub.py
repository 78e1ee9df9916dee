"""A stand-in for the Hugging Face hub on localhost: it serves folders as the hub does and records every request."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from versions import strict_python

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNREACHABLE = "http://127.0.0.1:9"


@dataclass
class Hub:
    """The repositories that are served, and the requests so far.

    Attributes:
        models: repository to folder.
        gated: repositories whose files need a token.
        asked: ``METHOD path`` of every request.
        broken: how many bytes of a file are sent before the connection drops; None: all.
    """

    models: dict[str, Path]
    gated: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)
    broken: int | None = None
    url: str = ""

    def fetched(self) -> set[str]:
        """Return the names of the files that were sent."""
        return {line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(script: str, home: Path, url: str, **environment: str) -> list[str]:
    """Run a script with the real client and an empty home; return its lines, or its one-line ``error: ...``."""
    body = "\n".join(f"    {line}" for line in script.strip().splitlines())
    program = f"import sys\ntry:\n{body}\nexcept ValueError as error:\n    print('error:', error)\n"
    known = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    path = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, *strict_python(), "-c", program],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(home)} | known | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.listing("/".join(parts[2:4]), parts[5] if len(parts) > 4 else "main")
        if len(parts) > 4 and parts[2] == "resolve":
            return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.send(404)

    def listing(self, repo: str, revision: str) -> None:
        if repo not in self.hub.models:
            return self.send(401, error="RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.send(404, error="RevisionNotFound")
        files = [self.described(file) for file in sorted(self.hub.models[repo].iterdir())]
        return self.send(200, json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files}).encode())

    def described(self, file: Path) -> dict[str, object]:
        entry: dict[str, object] = {"rfilename": file.name, "size": file.stat().st_size, "blobId": etag(file)[:40]}
        if file.suffix == ".safetensors":
            entry["lfs"] = {"sha256": etag(file), "size": file.stat().st_size, "pointerSize": 130}
        return entry

    def file(self, repo: str, revision: str, name: str) -> None:
        file = self.hub.models.get(repo, Path("absent")) / name
        if repo in self.hub.gated and self.headers.get("authorization") is None:
            return self.send(401, error="GatedRepo")
        if revision not in ("main", COMMIT):
            return self.send(404, error="RevisionNotFound")
        if not file.is_file():
            return self.send(404, error="EntryNotFound")
        tag = etag(file) if file.suffix == ".safetensors" else etag(file)[:40]
        return self.send(200, file.read_bytes(), ETag=f'"{tag}"')

    def send(self, status: int, body: bytes = b"", error: str = "", **headers: str) -> None:
        self.send_response(status)
        if error:
            headers |= {"X-Error-Code": error, "X-Error-Message": error}
        for key, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if self.hub.broken is None else body[: self.hub.broken])


def etag(file: Path) -> str:
    """Return the ETag that the hub gives a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
