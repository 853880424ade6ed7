"""A real HTTP server over a folder, which fails when told to and speaks the part of the Hub's protocol that reads.

A file `a/b.jsonl` is at `/a/b.jsonl`; a folder `owner/name` is also the Hub's data set of that id, with one commit.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "5" * 40
DATA_SUFFIXES = (".parquet", ".jsonl", ".gz", ".txt")
API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)/?(.*))?")
RESOLVE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Failure:
    """How a request fails: an error status, no answer at all, a body that is cut off, an answer that comes late."""

    status: int | None = None
    drop: bool = False
    cut: int | None = None  # bytes of the body that are sent, though the header says more
    delay: float = 0.0  # seconds


class Answer(NamedTuple):
    """A request for a data file that was answered, and the bytes of the file that were sent."""

    method: str
    path: str
    status: int
    sent: int


class FileServer:
    """Serves a folder at `url` until `stop`, and from `start` on again at the same port.

    Attributes:
        failures: one for each GET of a data file to come, None for one that goes well; or a function of the method
            and the path, asked at each GET and HEAD of a data file.
        ranges: whether a client can ask for a part of a file.
        answers: all requests for data files so far.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.failures: list[Failure | None] | Callable[[str, str], Failure | None] = []
        self.ranges = True
        self.answers: list[Answer] = []
        self._port = 0  # any free one
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """The address of the folder."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def sent(self) -> int:
        """Bytes of data files sent so far."""
        return sum(answer.sent for answer in self.answers)

    def start(self) -> None:
        """Listen."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), type("Bound", (Handler,), {"owner": self}))
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections; requests under way are still answered."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def next_failure(self, method: str, path: str) -> Failure:
        """What goes wrong with this request."""
        if callable(self.failures):
            return self.failures(method, path) or Failure()
        return (self.failures.pop(0) if self.failures and method == "GET" else None) or Failure()


class Handler(BaseHTTPRequestHandler):
    """Answers one request a connection (HTTP/1.0), so that none outlives `FileServer.stop`."""

    owner: FileServer

    def do_GET(self) -> None:
        """A file, or what the Hub tells about a data set."""
        path = unquote(urlsplit(self.path).path)
        if match := API.fullmatch(path):
            self.tell(*match.groups())
        elif match := RESOLVE.fullmatch(path):
            data_set, revision, name = match.groups()
            if self.exists(data_set, revision):
                self.send_file(f"{data_set}/{name}", {"X-Repo-Commit": COMMIT})
        else:
            self.send_file(path.removeprefix("/"), {})

    do_HEAD = do_POST = do_GET

    def send_file(self, name: str, headers: dict[str, str]) -> None:
        """A file or a part of it, unless something goes wrong."""
        file, is_data = self.owner.folder / name, name.endswith(DATA_SUFFIXES)
        failure = self.owner.next_failure(self.command, name) if is_data else Failure()
        threading.Event().wait(failure.delay)
        status, body = failure.status or (200 if file.is_file() else 404), b""
        if failure.drop:
            status = 0
        elif status == 404:
            headers["X-Error-Code"] = "EntryNotFound"
        elif status == 200:
            body = file.read_bytes()
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            if self.owner.ranges and (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
                begin, end = int(asked[1]), min(int(asked[2]), len(body) - 1)
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(body)}"
                status, body = 206, body[begin : end + 1]
        if is_data:  # noted before it is sent: the client may be faster than this thread
            sent = 0 if self.command == "HEAD" else len(body[: failure.cut])
            self.owner.answers.append(Answer(self.command, name, status, sent))
        if failure.drop:
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.send(status, body, headers, failure.cut)

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        """An answer, with the first `cut` bytes of its body."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def exists(self, data_set: str, revision: str | None) -> bool:
        """Whether there is such a data set; answers where there is none."""
        known = (self.owner.folder / data_set).is_dir()
        if known and revision in (None, "main", COMMIT):
            return True
        self.send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        return False

    def tell(self, data_set: str, question: str | None, revision: str | None, path: str) -> None:
        """What the Hub knows about a data set, a folder of it, or some of its paths."""
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        if not self.exists(data_set, revision):
            return
        root = self.owner.folder / data_set
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
        known = entries if question in ("tree", "paths-info") else {"id": data_set, "sha": COMMIT}
        self.send(200, json.dumps(known).encode(), {"Content-Type": "application/json"})

    def log_message(self, *args) -> None:
        """Print nothing."""
