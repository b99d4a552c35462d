"""A small Hugging Face hub on 127.0.0.1, with what its clients need to download a model.

Beside it stands a second server for large files, as the real one has: a client that sends its
token there gives it away.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """commits: {commit: {name: content}}. refs: {branch or tag: commit}.

    private: only the hub's tokens see it. gated: its files need a token in `readers`.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)

    def push(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Point `ref` at a new commit that holds `files`. Returns the commit."""
        stamp = json.dumps([len(self.commits), {n: digest(c) for n, c in files.items()}])
        commit = hashlib.sha1(stamp.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit


@dataclass(frozen=True)
class Asked:
    """One request that came in. where: "hub" or "store". start: of the range asked for."""

    where: str
    method: str
    path: str
    token: str | None
    start: int


class LoopbackHub:
    """The hub. A context manager; everything may be changed while it runs.

    tokens: those that are valid. asked: the requests so far.
    status: answer everything with this status instead. prose: answer with a web page instead.
    sizes: {name: bytes} to claim instead of the true size.
    breaks: {name: n} bodies to break off halfway. stalled: names whose body stops halfway until
        `release` is set; `stopped` is set when one has.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self.asked: list[Asked] = []
        self.status = 0
        self.prose = False
        self.sizes: dict[str, int] = {}
        self.breaks: Counter[str] = Counter()
        self.stalled: set[str] = set()
        self.stopped = threading.Event()
        self.release = threading.Event()
        self._servers = {where: self._server(where) for where in ("hub", "store")}
        self.endpoint, self.store = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers.values()
        )

    def __enter__(self) -> Self:
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse connections from now on. Idempotent."""
        self.release.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def repository(self, repo_id: str) -> Repository:
        return self.repositories.setdefault(repo_id, Repository())

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, once each."""
        paths = [asked.path for asked in self.asked if asked.method == "GET"]
        return sorted({path.split("/")[-1] for path in paths if not path.startswith("/api/")})

    def _server(self, where: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            def setup(self) -> None:
                self.hub, self.where = hub, where
                super().setup()

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        return server


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub
    where: str

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the library's name
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = url.path
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        self.token = token if scheme == "Bearer" else None
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(start[1]) if start else 0
        self.hub.asked.append(Asked(self.where, self.command, path, self.token, self.start))
        try:
            self._route(path, parse_qs(url.query))
        except _Refused as refused:
            told = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            body = json.dumps({"error": refused.message}).encode()
            self._send(refused.status, body, {name: value for name, value in told.items() if value})

    def _route(self, path: str, query: Mapping[str, list[str]]) -> None:
        hub = self.hub
        if hub.status:
            raise _Refused(hub.status, "", "the hub has a bad day")
        if hub.prose:
            self._send(200, b"<html>Sign in to the network</html>", {"Content-Type": "text/html"})
        elif self.where == "store":
            self._content(path)
        elif match := API.fullmatch(path):
            repo_id, kind, revision = match[1], match[2], unquote(match[3] or "main")
            repository = self._repository(repo_id)
            commit = self._commit(repository, revision)
            files = repository.commits[commit]
            if kind == "tree":
                self._json([self._entry(name, content) for name, content in files.items()])
            else:
                sized = "blobs" in query
                siblings = [self._sibling(name, files[name], sized) for name in files]
                self._json({"id": repo_id, "sha": commit, "siblings": siblings})
        elif match := RESOLVE.fullmatch(path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        else:
            raise _Refused(404, "", "no such page")

    def _repository(self, repo_id: str) -> Repository:
        hub = self.hub
        if self.token is not None and self.token not in hub.tokens:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        repository = hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.token not in repository.readers):
            if self.token is None:
                raise _Refused(401, "RepoNotFound", "Invalid username or password.")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self._repository(repo_id)
        if repository.gated and self.token not in repository.readers:
            status = 401 if self.token is None else 403
            raise _Refused(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        commit = self._commit(repository, revision)
        content = repository.commits[commit].get(name)
        if content is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest(content)}"'}
        if not name.endswith(".safetensors"):
            self._body(name, content, headers)
            return
        headers["X-Linked-Etag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(self.hub.sizes.get(name, len(content)))
        headers["Location"] = f"{self.hub.store}/{repo_id}/{commit}/{name}"
        self._send(302, b"", headers)

    def _content(self, path: str) -> None:
        owner, repo, commit, name = unquote(path).strip("/").split("/", 3)
        content = self.hub.repositories[f"{owner}/{repo}"].commits[commit][name]
        self._body(name, content, {"ETag": f'"{digest(content)}"'})

    def _body(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """Send `content` from the start of the range, or as much of it as this hub feels like."""
        body = content[self.start :]
        if self.start:
            headers["Content-Range"] = f"bytes {self.start}-{len(content) - 1}/{len(content)}"
        status = 206 if self.start else 200
        half = body[: len(body) // 2]
        if self.command == "GET" and self.hub.breaks[name] > 0:
            self.hub.breaks[name] -= 1
            self._send(status, half, headers, length=len(body))
            self.close_connection = True
        elif self.command == "GET" and name in self.hub.stalled:
            self._send(status, half, headers, length=len(body))
            self.wfile.flush()
            self.hub.stopped.set()
            self.hub.release.wait()
            self.close_connection = True
        else:
            self._send(status, body, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], length: int | None = None
    ) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        size = self.hub.sizes.get(name, len(content))
        entry = {"type": "file", "path": name, "size": size, "oid": digest(content)}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": digest(content), "size": size, "pointerSize": 130}
        return entry

    def _sibling(self, name: str, content: bytes, sized: bool) -> dict[str, object]:
        size = {"size": self.hub.sizes.get(name, len(content))} if sized else {}
        return {"rfilename": name, **size}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
