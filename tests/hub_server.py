"""A Hub on this machine: repositories of models with commits and branches, and connections that are lost.

It speaks what `huggingface_hub` asks of the real one over HTTP, large files by the LFS protocol; Xet it does not know.
"""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.data.http_server import Failure, LocalServer

LARGE = (".safetensors", ".bin", ".pt", ".pth")
TOKENS = {"hf_writes": ("user", "write"), "hf_reads": ("user", "read"), "hf_other": ("other", "write")}


def environment(url: str, home: str, token: str | None = "hf_writes") -> dict[str, str]:
    """What a process needs to take a server for the Hub; its library reads this once, when it is imported."""
    return {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": home,
        "HF_TOKEN": token or "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@dataclass
class Repository:
    """Its owner, and what each branch's commit holds: path -> SHA-256 of the content."""

    owner: str
    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, str]) -> str:
        """Add a commit to a branch."""
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch name or hash."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class HubServer(LocalServer):
    """What it holds stays when it stops.

    Attributes:
        repositories: id -> repository; `blobs`: SHA-256 -> content.
        requests: method and path of all that was asked.
        fails: a function of method and path, asked at each request what goes wrong with it.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fails: Callable[[str, str], Failure | None] = lambda method, path: None
        super().__init__(Handler)

    def create(self, repo_id: str, owner: str, private: bool = False) -> None:
        """Make a repository with one empty commit."""
        self.repositories[repo_id] = Repository(owner, private)
        self.repositories[repo_id].commit("main", {})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """All files of a revision."""
        repository = self.repositories[repo_id]
        return {path: self.blobs[sha] for path, sha in repository.commits[repository.resolve(revision)].items()}


class Handler(BaseHTTPRequestHandler):
    """One request a connection; the routes are the methods below `answer`."""

    owner: HubServer

    def answer(self) -> None:
        """Find the requested file, and check the client's access to it."""
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append((self.command, path))
        failure = self.owner.fails(self.command, path)
        if failure and failure.cut is not None:
            self.rfile.read(failure.cut)  # a part of what is being sent; then nobody listens any more
        if failure and (failure.drop or failure.cut is not None):
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.body = self.read_body()
        if failure and failure.status:
            return self.send(failure.status)
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer and bearer not in TOKENS:
            return self.send(401, error="Invalid credentials in Authorization header")
        self.user, self.role = TOKENS.get(bearer, (None, None))
        return self.dispatch(path)

    def dispatch(self, path: str) -> None:
        """Respond to the requested path."""
        if path == "/api/whoami-v2":
            return self.whoami()
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if match := re.fullmatch(r"/lfs/(\w+)", path):
            return self.store(match[1])
        for pattern, route in ROUTES:
            if (match := re.fullmatch(pattern, path)) and (repository := self.repository(match["id"])):
                asked = match.groupdict()
                self.repo_id = asked.pop("id")
                return getattr(self, route)(repository, **asked)
        return None if getattr(self, "answered", False) else self.send(404, code="EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def whoami(self) -> None:
        """Say whose token it is."""
        if not self.user:
            return self.send(401, error="Invalid credentials in Authorization header")
        who = {"type": "user", "name": self.user, "orgs": [{"name": "lab"}]}
        return self.send(200, who | {"auth": {"accessToken": {"role": self.role}}})

    def read_body(self) -> bytes:
        """The body of the request, which may come in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content=None, code: str = "", error: str = "", **headers: str) -> None:
        """An answer: JSON, or bytes."""
        self.answered = True
        body = content if isinstance(content, bytes) else json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        headers |= {"X-Error-Code": code} if code else {}
        headers |= {"X-Error-Message": error} if error else {}
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, repo_id: str) -> Repository | None:
        """A repository that the client may see; sends an error if there is no such repository."""
        found = self.owner.repositories.get(repo_id)
        if not found or (found.private and found.owner != self.user):
            return self.send(404 if self.user else 401, code="RepoNotFound")
        if self.command in ("POST", "PUT") and (found.owner != self.user or self.role != "write"):
            return self.send(403, error="You don't have the rights required to perform this action")
        return found

    def create(self, asked: dict) -> None:
        owner = asked.get("organization") or self.user
        repo_id = f"{owner}/{asked['name']}"
        url = {"url": f"{self.owner.url}/{repo_id}", "name": repo_id}
        if repo_id in self.owner.repositories:
            return self.send(409, url)
        if owner != self.user or self.role != "write":
            return self.send(403, error="You don't have the rights required to create this repository")
        self.owner.create(repo_id, owner, asked.get("visibility") == "private" or bool(asked.get("private")))
        return self.send(200, url)

    def check(self, repository: Repository, write: str | None) -> None:
        may = not write or (repository.owner == self.user and self.role == "write")
        self.send(200 if may else 403, error="" if may else "no write access")

    def info(self, repository: Repository, revision: str | None) -> None:
        if sha := self.revision(repository, revision or "main"):
            files = [{"rfilename": path} for path in repository.commits[sha]]
            self.send(200, {"id": "", "sha": sha, "private": repository.private, "siblings": files})

    def revision(self, repository: Repository, name: str) -> str | None:
        return repository.resolve(name) or self.send(404, code="RevisionNotFound")

    def tree(self, repository: Repository, revision: str, path: str | None) -> None:
        if not (sha := self.revision(repository, revision)):
            return None
        prefix = f"{path}/" if path else ""
        entries = [self.entry(*item) for item in repository.commits[sha].items() if item[0].startswith(prefix)]
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        if not recursive:
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        return self.send(200, entries) if entries or not path else self.send(404, code="EntryNotFound")

    def paths_info(self, repository: Repository, revision: str) -> None:
        asked = json.loads(self.body)["paths"] if self.body.startswith(b"{") else parse_qs(self.body.decode())["paths"]
        if sha := self.revision(repository, revision):
            files = repository.commits[sha]
            self.send(200, [self.entry(path, files[path]) for path in asked if path in files])

    def entry(self, path: str, sha: str) -> dict:
        content = self.owner.blobs[sha]
        entry = {"type": "file", "path": path, "size": len(content), "oid": self.oid(path, content)}
        lfs = {"oid": sha, "size": len(content), "pointerSize": 134}
        return entry | ({"lfs": lfs} if path.endswith(LARGE) else {})

    def oid(self, path: str, content: bytes) -> str:
        if path.endswith(LARGE):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def branch(self, repository: Repository, name: str) -> None:
        if name in repository.branches:
            return self.send(409, error="Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        if sha := self.revision(repository, start):
            repository.branches[name] = sha
            self.send(200)
        return None

    def preupload(self, repository: Repository, revision: str) -> None:
        if not (sha := self.revision(repository, revision)):
            return
        there, files = repository.commits[sha], []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            remote = self.oid(path, self.owner.blobs[there[path]]) if path in there else None
            mode = "lfs" if path.endswith(LARGE) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": remote})
        self.send(200, {"files": files})

    def lfs_batch(self, repository: Repository) -> None:
        objects = []
        for file in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.owner.url}/lfs/{file['oid']}", "header": {}}}
            objects.append(file | ({} if file["oid"] in self.owner.blobs else {"actions": upload}))
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.send(400, error="The content is not that of its hash")
        self.owner.blobs[oid] = self.body
        return self.send(200)

    def add_commit(self, repository: Repository, revision: str) -> None:
        files = dict(repository.commits[repository.branches[revision]])
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                content = base64.b64decode(value["content"])
                sha = hashlib.sha256(content).hexdigest()
                self.owner.blobs[sha] = content
                files[value["path"]] = sha
            elif kind == "lfsFile":
                if value["oid"] not in self.owner.blobs:
                    return self.send(400, error=f"{value['path']} was not uploaded")
                files[value["path"]] = value["oid"]
            elif kind == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(revision, files)
        return self.send(200, {"commitUrl": f"{self.owner.url}/{self.repo_id}/commit/{sha}", "commitOid": sha})

    def file(self, repository: Repository, revision: str, path: str) -> None:
        if not (sha := self.revision(repository, revision)):
            return None
        blob = repository.commits[sha].get(path)
        if blob is None:
            return self.send(404, code="EntryNotFound", X_Repo_Commit=sha)
        content = self.owner.blobs[blob]
        headers = {"ETag": f'"{self.oid(path, content)}"', "X_Repo_Commit": sha}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin = int(asked[1])
            content = content[begin : int(asked[2]) + 1 if asked[2] else None]
            headers["Content_Range"] = f"bytes {begin}-{begin + len(content) - 1}/{len(self.owner.blobs[blob])}"
            return self.send(206, content, **headers)
        return self.send(200, content, **headers)

    def log_message(self, *args) -> None:
        """Print nothing."""


ROUTES = [
    (r"/api/models/(?P<id>[^/]+/[^/]+)/auth-check(?P<write>/write)?", "check"),
    (r"/api/models/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?", "info"),
    (r"/api/models/(?P<id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    (r"/api/models/(?P<id>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (r"/api/models/(?P<id>[^/]+/[^/]+)/branch/(?P<name>.+)", "branch"),
    (r"/api/models/(?P<id>[^/]+/[^/]+)/preupload/(?P<revision>.+)", "preupload"),
    (r"/api/models/(?P<id>[^/]+/[^/]+)/commit/(?P<revision>.+)", "add_commit"),
    (r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
]
