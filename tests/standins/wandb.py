"""A stand-in for the W&B server on localhost: the operations that the real client, agent and sync use.

The protocol is W&B's own and private, so the client is pinned in the tests; what is not known here is kept in
``unknown`` and refused.
"""

import gzip
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY = "tester"

PROJECT = {"id": "P1", "name": "depthcut", "entity": {"id": "E1", "name": ENTITY}}
VIEWER = {"id": "U1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
FIXED = {
    "Viewer": {"viewer": VIEWER},
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "OrganizationCoreWeaveOrganizationID": {"entity": {"organization": None}},
    "MarkRunFilesUploaded": {"markRunFilesUploaded": {"success": True}},
}


@dataclass
class Run:
    """A run as the server knows it; ``history`` holds the rows by their line, as a client may send a line again."""

    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.history[line] for line in sorted(self.history)]


@dataclass
class Sweep:
    """A sweep and the points of its grid that no agent has drawn yet."""

    config: dict[str, Any]
    drawn: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters = self.config["parameters"]
        values = [[each["value"]] if "value" in each else each["values"] for each in parameters.values()]
        self.left = [dict(zip(parameters, point, strict=True)) for point in itertools.product(*values)]


@dataclass
class Server:
    """The runs and sweeps so far, and the requests.

    Attributes:
        asked: the name of every operation, in order.
        unknown: the operations that are not implemented here.
        status: what every request is answered with, if not 200.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    agents: dict[str, Sweep] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    status: int = 200
    url: str = ""

    def answer(self, operation: str, v: dict[str, Any]) -> Any:
        """Return the data of a GraphQL operation with variables ``v``, or None if it is not implemented."""
        self.asked.append(operation)
        if operation in FIXED:
            return FIXED[operation]
        known = {
            "UpsertSweep": self.sweep,
            "SweepWithRuns": self.of_sweep,
            "CreateAgent": self.agent,
            "Heartbeat": self.heartbeat,
            "RunResumeStatus": self.resume,
            "UpsertBucket": self.upsert,
            "CreateRunFiles": self.uploads,
        }
        if operation not in known:
            self.unknown.append(operation)
            return None
        return known[operation](v)

    def run(self, name: str) -> Run:
        return self.runs.setdefault(name, Run())

    def sweep(self, v: dict[str, Any]) -> Any:
        name = v.get("id") or f"sweep{len(self.sweeps)}"
        if v.get("config"):
            self.sweeps[name] = Sweep(yaml.safe_load(v["config"]))
        return {"upsertSweep": {"sweep": {"name": name, "project": PROJECT}, "configValidationWarnings": []}}

    def of_sweep(self, v: dict[str, Any]) -> Any:
        config = yaml.safe_dump(self.sweeps[v["sweep"]].config)
        found = {"id": v["sweep"], "name": v["sweep"], "method": "grid", "state": "RUNNING", "config": config}
        return {"project": {"sweep": found | {"runs": {"edges": []}}}}

    def agent(self, v: dict[str, Any]) -> Any:
        name = f"agent{len(self.agents)}"
        self.agents[name] = self.sweeps[v["sweep"]]
        return {"createAgent": {"agent": {"id": name}}}

    def heartbeat(self, v: dict[str, Any]) -> Any:
        commands = [] if json.loads(v["runState"]) else [self.draw(self.agents[v["id"]])]
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}

    def draw(self, sweep: Sweep) -> dict[str, Any]:
        """Return the next point of the grid as a command for an agent; its run exists before the agent starts it."""
        if not sweep.left:
            return {"id": "end", "type": "exit"}
        point, name = sweep.left.pop(0), f"drawn{len(sweep.drawn)}"
        sweep.drawn.append(name)
        self.run(name)
        arguments = {key: {"value": value} for key, value in point.items()}
        return {"id": name, "type": "run", "run_id": name, "program": sweep.config["program"], "args": arguments}

    def resume(self, v: dict[str, Any]) -> Any:
        bucket = tail(v["name"], self.runs[v["name"]]) if v["name"] in self.runs else None
        return {"model": PROJECT | {"bucket": bucket}}

    def upsert(self, v: dict[str, Any]) -> Any:
        run = self.run(v["name"])
        if v.get("config"):
            run.config = {key: entry["value"] for key, entry in json.loads(v["config"]).items() if key != "_wandb"}
        if v.get("summaryMetrics"):
            run.summary = json.loads(v["summaryMetrics"])
        told = ("project", "entity", "sweep", "groupName", "jobType", "displayName", "tags")
        run.about |= {key: v[key] for key in told if v.get(key)}
        bucket = {"id": v["name"], "name": v["name"], "displayName": v["name"], "description": None, "config": "{}"}
        bucket |= {"sweepName": run.about.get("sweep"), "historyLineCount": len(run.history), "project": PROJECT}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def uploads(self, v: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def stream(self, name: str, told: dict[str, Any]) -> None:
        """Receive a chunk of a run's curve, its summary and its exit code."""
        run, files = self.run(name), told.get("files") or {}
        rows = files.get("wandb-history.jsonl") or {"offset": 0, "content": []}
        for line, row in enumerate(rows["content"], start=rows["offset"]):
            run.history[line] = json.loads(row)
        for row in (files.get("wandb-summary.json") or {}).get("content", []):
            run.summary = json.loads(row)
        if told.get("complete"):
            run.exit_code = told["exitcode"]


def tail(name: str, run: Run) -> dict[str, Any]:
    """Return what a client needs to resume a run."""
    last = [json.dumps(row) for row in run.rows[-1:]]
    found = {"id": name, "name": name, "displayName": name, "summaryMetrics": json.dumps(run.summary)}
    found |= {"logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0}
    found |= {"historyTail": json.dumps(last), "eventsTail": "[]", "notes": None, "tags": run.about.get("tags", [])}
    config = {key: {"value": value} for key, value in run.config.items()}
    return found | {"config": json.dumps(config), "wandbConfig": '{"t": 1}' if run.about else None}


class Handler(BaseHTTPRequestHandler):
    """Serve GraphQL, the stream of a run's rows, and uploads."""

    protocol_version = "HTTP/1.1"
    server_of: Server
    lock = threading.Lock()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            raw = b"".join(iter(self.chunk, b""))
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def chunk(self) -> bytes:
        piece = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return piece

    def send(self, answer: Any) -> None:
        status = self.server_of.status
        text = json.dumps(answer if status == 200 else {"errors": [{"message": "out of order"}]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.send({})

    def do_PUT(self) -> None:
        content, (_, _, run, *path) = self.body(), self.path.split("/")
        with self.lock:
            self.server_of.run(run).files["/".join(path)] = content
        self.send({})

    def do_POST(self) -> None:
        told = json.loads(self.body())
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        with self.lock:
            if stream:
                self.server_of.stream(stream[1], told)
                answer: Any = {"exitcode": None, "limits": {}}
            else:
                name = told.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", told["query"])[0]
                answer = {"data": self.server_of.answer(name, told.get("variables") or {})}
        self.send(answer)


class Quiet(ThreadingHTTPServer):
    """A server that does not log dropped connections."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


@contextmanager
def serve() -> Iterator[Server]:
    """Serve until the block ends."""
    server = Server()
    http = Quiet(("127.0.0.1", 0), type("H", (Handler,), {"server_of": server}))
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
