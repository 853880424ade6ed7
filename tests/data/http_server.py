"""A real HTTP server over a folder, which fails when told to. It also speaks what of the Hub's protocol reads a data set.

A file `a/b.jsonl` is at `/a/b.jsonl`; a folder `owner/name` is also the Hub data set of that id, with one commit.
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
API = re.compile(
    r"/api/datasets/(?P<id>[^/]+/[^/]+)(/(?P<kind>revision|tree|paths-info)/(?P<revision>[^/]+)(?P<path>.*))?"
)
RESOLVE = re.compile(r"/datasets/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Failure:
    """How one request fails: an error status, no answer at all, the body cut off, or an answer that comes late."""

    status: int | None = None
    drop: bool = False
    cut: int | None = None  # bytes of the body that are sent
    delay: float = 0.0


class Answer(NamedTuple):
    """A request for a data file that has been answered, and the bytes of the file that were sent."""

    method: str
    path: str
    status: int
    sent: int


class FileServer:
    """Serves a folder at `url` from `start` to `stop`, always at the same port.

    Attributes:
        failures: one for each GET of a data file to come, None for one that goes well; or a function of the method
            and the path, asked about each GET and HEAD of a data file.
        ranges: whether a part of a file can be asked for.
        answers: all requests for data files so far.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.failures: list[Failure | None] | Callable[[str, str], Failure | None] = []
        self.ranges = True
        self.answers: list[Answer] = []
        self._port = 0
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
        """Listen, at the port of the first time."""
        handler = type("BoundHandler", (Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on; requests under way are still answered."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def next_failure(self, method: str, path: str) -> Failure | None:
        """What goes wrong with this request."""
        if callable(self.failures):
            return self.failures(method, path)
        return self.failures.pop(0) if self.failures and method == "GET" else None


class Handler(BaseHTTPRequestHandler):
    """Answers one request a connection (HTTP/1.0): no connection outlives `FileServer.stop`."""

    owner: FileServer

    def do_HEAD(self) -> None:
        """A file's size and ETag."""
        self._answer()

    def do_GET(self) -> None:
        """A file, or a listing of the Hub's."""
        self._answer()

    def do_POST(self) -> None:
        """The Hub's question about single paths."""
        self._answer()

    def log_message(self, *args) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := API.fullmatch(path):
            self._answer_api(**match.groupdict())
        elif match := RESOLVE.fullmatch(path):
            self._send_file(f"{match['id']}/{match['path']}", {"X-Repo-Commit": COMMIT})
        else:
            self._send_file(path.removeprefix("/"), {})

    def _send_file(self, name: str, headers: dict[str, str]) -> None:
        file, is_data = self.owner.folder / name, name.endswith(DATA_SUFFIXES)
        failure = self.owner.next_failure(self.command, name) if is_data else None
        failure = failure or Failure()
        threading.Event().wait(failure.delay)
        status, sent = failure.status or (200 if file.is_file() else 404), 0
        if failure.drop:
            status = 0
            self.connection.shutdown(socket.SHUT_RDWR)
        elif status != 200:
            self._send(status, b"", {"X-Error-Code": "EntryNotFound"} if status == 404 else {})
        else:
            body, size = file.read_bytes(), file.stat().st_size
            headers |= {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "Accept-Ranges": "bytes"}
            if self.owner.ranges and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                begin, end = int(asked[1]), min(int(asked[2] or size), size - 1)
                status, body = 206, body[begin : end + 1]
                headers["Content-Range"] = f"bytes {begin}-{end}/{size}"
            sent = self._send(status, body, headers, failure.cut)
        if is_data:
            self.owner.answers.append(Answer(self.command, name, status, sent))

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> int:
        """Send an answer, of its body only the first `cut` bytes, and return how many bytes of body were sent."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return 0
        return self.wfile.write(body[:cut])

    def _answer_api(self, id: str, kind: str | None, revision: str | None, path: str | None) -> None:
        root = self.owner.folder / id
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        query = parse_qs(urlsplit(self.path).query)
        if not root.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            folder = root / (path or "").strip("/")
            if folder.is_dir():
                recursive = query.get("recursive", ["false"])[0].lower() == "true"
                self._send_json([entry(root, found) for found in sorted(folder.glob("**/*" if recursive else "*"))])
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif kind == "paths-info":
            self._send_json([entry(root, root / name) for name in form["paths"] if (root / name).exists()])
        else:
            files = [{"rfilename": file["path"]} for file in map(lambda f: entry(root, f), root.glob("**/*"))]
            self._send_json({"id": id, "sha": COMMIT, "private": False, "gated": False, "siblings": files})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def entry(root: Path, file: Path) -> dict:
    """A file or folder as the Hub lists it."""
    kind, size = ("directory", 0) if file.is_dir() else ("file", file.stat().st_size)
    return {"type": kind, "path": file.relative_to(root).as_posix(), "size": size, "oid": COMMIT}
