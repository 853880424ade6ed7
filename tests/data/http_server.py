"""A real HTTP server over a folder, which can fail on purpose, and speaks the reading part of the Hub's protocol.

A file `a/b.jsonl` is at `/a/b.jsonl`; a folder `owner/name` is also the Hub's data set of that id, with one commit.
"""

import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "5" * 40
DATA_SUFFIXES = (".parquet", ".jsonl", ".gz", ".txt")
API = re.compile(r"api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)/?(.*))?")
RESOLVE = re.compile(r"datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Failure:
    """How a request fails: an error status, no response, fewer bytes than requested, or a late response."""

    status: int | None = None
    drop: bool = False
    cut: int | None = None  # bytes of the body that are sent, with the full length in the header
    short: int | None = None  # bytes of the body that are sent, with this length in the header
    delay: float = 0.0  # seconds


class QuietServer(ThreadingHTTPServer):
    """Ignores clients that do not wait for the end of a response."""

    def handle_error(self, request, client_address) -> None:
        """Print any other error of a handler."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class LocalServer:
    """Listens at `url` until `stop`, and again at the same port after `start`.

    Args:
        handler: a class of handlers, whose `owner` is the server.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        self._handler = type("Bound", (handler,), {"owner": self})
        self._port = 0  # any free one
        self._server: QuietServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen."""
        self._server = QuietServer(("127.0.0.1", self._port), self._handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections; requests under way are still answered."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class FileServer(LocalServer):
    """Serves a folder.

    Attributes:
        failures: one for each GET of a data file to come, None for one that goes well; or a function of the method
            and the path (of a file, or `api/datasets/...`) that is asked at each request.
        ranges: whether a client can ask for a part of a file.
        sent: bytes of files sent so far.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.failures: list[Failure | None] | Callable[[str, str], Failure | None] = []
        self.ranges = True
        self.sent = 0
        super().__init__(Handler)

    def next_failure(self, method: str, path: str) -> Failure:
        """What goes wrong with this request."""
        if callable(self.failures):
            return self.failures(method, path) or Failure()
        fails = self.failures and method == "GET" and path.endswith(DATA_SUFFIXES)
        return (self.failures.pop(0) if fails else None) or Failure()


class Handler(BaseHTTPRequestHandler):
    """Answers one request per connection (HTTP/1.0), so that no connection outlives `FileServer.stop`."""

    owner: FileServer

    def do_GET(self) -> None:
        """A file, or the Hub's facts about a data set."""
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        headers = {}
        if match := RESOLVE.fullmatch(path):
            data_set, revision, name = match.groups()
            if not self.exists(data_set, revision):
                return
            path, headers = f"{data_set}/{name}", {"X-Repo-Commit": COMMIT}
        failure = self.owner.next_failure(self.command, path)
        threading.Event().wait(failure.delay)
        if failure.drop:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif failure.status:
            self.send(failure.status, b"", {"X-Error-Code": "EntryNotFound"} if failure.status == 404 else {})
        elif match := API.fullmatch(path):
            self.tell(*match.groups())
        else:
            self.send_file(self.owner.folder / path, headers, failure)

    do_HEAD = do_POST = do_GET

    def send_file(self, file: Path, headers: dict[str, str], failure: Failure) -> None:
        """Send a file, or the requested range of it."""
        if not file.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        body, status = file.read_bytes(), 200
        headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        if self.owner.ranges and (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            begin, end = int(asked[1]), min(int(asked[2]), len(body) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(body)}"
            status, body = 206, body[begin : end + 1]
        body = body[: failure.short]
        if self.command == "GET":  # counted before it is sent: the client may be faster than this thread
            self.owner.sent += len(body[: failure.cut])
        self.send(status, body, headers, failure.cut)
        return None

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        """An answer, with the first `cut` bytes of its body."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def exists(self, data_set: str, revision: str | None) -> bool:
        """Whether the data set exists; sends an error if not."""
        known = (self.owner.folder / data_set).is_dir()
        if known and revision in (None, "main", COMMIT):
            return True
        self.send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        return False

    def tell(self, data_set: str, question: str | None, revision: str | None, path: str | None) -> None:
        """What the Hub knows about a data set, a folder of it, or some of its paths."""
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        root = self.owner.folder / data_set
        if not self.exists(data_set, revision):
            return None
        if question == "tree" and not (root / path).is_dir():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if question == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
            found = sorted((root / path).glob("**/*" if recursive else "*"))
        else:
            found = [root / name for name in form.get("paths", []) if (root / name).exists()]
        entries = [
            {"path": file.relative_to(root).as_posix(), "oid": COMMIT, "size": file.stat().st_size, "type": kind}
            for file in found
            if (kind := "directory" if file.is_dir() else "file")
        ]
        answer = entries if question in ("tree", "paths-info") else {"id": data_set, "sha": COMMIT}
        return self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def log_message(self, *args) -> None:
        """Print nothing."""
