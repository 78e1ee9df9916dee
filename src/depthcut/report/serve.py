"""The page of some studies on localhost: made anew whenever something in them has changed, so it follows a sweep."""

from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from depthcut import store
from depthcut.report import data, page, study

EVERY = 5000  # milliseconds between two looks of the page


class Live:
    """The page as it is now."""

    def __init__(self, studies: Sequence[Path]) -> None:
        self.studies = studies
        self.lock = Lock()
        self.built = ("", "")

    def version(self) -> str:
        """Names what lies in the studies' folders: the same name, the same page."""
        folders = [folder for each in self.studies for folder in study.inside(each)]
        files = [path for folder in folders for name in SHOWN for path in sorted(folder.glob(f"*/{name}"))]
        return store.digest([study.read(self.studies).words, [mark(path) for path in files]])

    def page(self) -> str:
        """The HTML; two that ask at once wait for one build."""
        with self.lock:
            version = self.version()
            if self.built[0] != version:
                found = study.read(self.studies)
                title = ", ".join(str(each) for each in self.studies)
                self.built = (version, page.text({**data.of(found, title), "version": version, "follow": EVERY}))
            return self.built[1]


SHOWN = ("record.json", "failure.json")


def mark(path: Path) -> list[str | int]:
    """A file's name, size and time; nothing of one that has just gone."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [str(path), found.st_size, found.st_mtime_ns]


class Handler(BaseHTTPRequestHandler):
    """Answers ``/`` with the page and ``/version`` with what it is made of, to this machine alone."""

    def __init__(self, live: Live, *rest: object) -> None:
        self.live = live
        super().__init__(*rest)  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        """Answer; a page of elsewhere that points a name of its own at this address gets nothing."""
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            return self.send_error(403)
        if self.path == "/version":
            return self.answer(self.live.version(), "text/plain")
        if self.path == "/":
            return self.answer(self.live.page(), "text/html")
        return self.send_error(404)

    def answer(self, text: str, kind: str) -> None:
        """Send ``text``."""
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""
        del format, args


def server(studies: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server that is ready to serve, on this machine's own address alone.

    Raises:
        ValueError: if there are no such studies, or the port is taken.
    """
    live = Live(studies)
    live.version()
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, live))
    except OSError as error:
        raise ValueError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from error


def run(studies: Sequence[Path], port: int) -> None:
    """Serve until Ctrl-C."""
    with server(studies, port) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()
