"""Serve the page of studies on localhost; it is rebuilt when a point finishes, and follows running points."""

import json
import re
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from depthcut.report import cells, data, live, page, study
from depthcut.runtime import store
from depthcut.runtime.errors import UserError

POLL_MILLISECONDS = 5000  # milliseconds between two polls by the page
PATIENCE = 10.0  # seconds for a client to send its request, and to receive the answer
PORTS = 65535
HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")


class LivePage:
    """The current page, and the parts of it that change while points run."""

    def __init__(self, studies: Sequence[Path]) -> None:
        self.studies = studies
        self.lock = Lock()
        self.kept: tuple[str, study.Studies] = ("", study.Studies())
        self.built = ("", b"")

    def version(self) -> str:
        """Return a digest of the files in the studies' folders: the same digest, the same page."""
        folders = [folder for each in self.studies for folder in study.study_folders(each)]
        files = [path for folder in folders for name in WATCHED_FILES for path in sorted(folder.glob(f"*/{name}"))]
        return store.content_digest([file_stamp(path) for path in files])

    def found(self) -> tuple[str, study.Studies]:
        """Return the version and the studies; records are read again only if the version is new."""
        version = self.version()
        if self.kept[0] != version:
            self.kept = (version, study.read_studies(self.studies))
        return version, study.refresh_studies(self.kept[1])

    def page(self) -> bytes:
        """Return the HTML, shared by all connections; two simultaneous requests wait for one build."""
        with self.lock:
            version, found = self.found()
            if self.built[0] != version:
                title = ", ".join(str(each) for each in self.studies)
                text = page.page_html({**data.page_data(found, title), "version": version, "follow": POLL_MILLISECONDS})
                self.built = (version, cells.encodable(text).encode())
            return self.built[1]

    def now(self) -> str:
        """Return the state that the page polls for, as JSON: version, counts in words, running points."""
        with self.lock:
            version, found = self.found()
        running = data.round_numbers(live.running_points(found.running))
        return json.dumps({"version": version, "words": found.words, "running": running}, allow_nan=False)


WATCHED_FILES = ("config.yaml", "record.json", "failure.json")


def file_stamp(path: Path) -> list[str | int]:
    """Return a file's path, size and time; empty if it was just deleted."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [str(path), found.st_size, found.st_mtime_ns]


class PageHandler(BaseHTTPRequestHandler):
    """Answers ``/`` with the page and ``/now`` with the current state, to this machine only."""

    timeout = PATIENCE

    def __init__(self, live: LivePage, *rest: object) -> None:
        self.live = live
        super().__init__(*rest)  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        """Answer a request; refuse foreign host names, which other sites could use to reach this server."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            return self.send_error(403)
        if self.path == "/now":
            return self.answer(cells.encodable(self.live.now()).encode(), "application/json")
        if self.path == "/":
            return self.answer(self.live.page(), "text/html")
        return self.send_error(404)

    def answer(self, body: bytes, kind: str) -> None:
        """Send ``body``, and close the connection of a client that does not receive it in time."""
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):  # the page was closed or reloaded
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing per request."""
        del format, args


def make_server(studies: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """Return a server that listens on 127.0.0.1 only.

    Raises:
        UserError: if a study does not exist, or the port is out of range or in use.
    """
    if not 0 <= port <= PORTS:
        raise UserError(f"--port must be a whole number from 0 to {PORTS}, got {port}")
    live = LivePage(studies)
    live.version()
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(PageHandler, live))
    except OSError as error:
        raise UserError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from error


def serve_page(studies: Sequence[Path], port: int) -> None:
    """Serve until Ctrl-C."""
    with make_server(studies, port) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()
