"""A small real HTTP server on loopback: the Hub's protocol, plain files with ranges, and GitHub's release listing.

It serves what its tests put into it, writes down every request, and can misbehave on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return not path.endswith((".json", ".md", ".gitattributes"))


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, changes: dict[str, bytes], branch: str = "main") -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        identity = hashlib.sha1(f"{len(self.commits)}{branch}".encode()).hexdigest()
        self.commits[identity] = files
        self.branches[branch] = identity
        return identity

    def resolve(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision)


class HubServer(ThreadingHTTPServer):
    """`server.url` is the endpoint; see `Repo`, `files`, `releases`, `misbehave` and `requests`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}
        self.releases: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.uploads: dict[str, bytes] = {}
        #: what the Hub's listing claims instead of the true sha256
        self.false_sha256: dict[str, str] = {}
        self._faults: dict[str, deque[tuple[str, Any]]] = defaultdict(deque)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def repo(self, name: str, files: dict[str, bytes]) -> str:
        """Create a repository with one commit; returns the commit."""
        self.repos[name] = Repo()
        return self.repos[name].commit(files)

    def misbehave(self, method: str, part: str, *faults: tuple[str, Any]) -> None:
        """The next requests of a method whose path contains `part` meet these faults, one each.

        ("status", 500), ("cut", bytes after which the connection breaks), ("wait", seconds of silence).
        """
        self._faults[f"{method} {part}"].extend(faults)

    def behave(self) -> None:
        """Forget the faults that nobody has met yet."""
        self._faults.clear()

    def fault(self, method: str, path: str) -> tuple[str, Any] | None:
        with self.lock:
            for key, queue in self._faults.items():
                wanted, part = key.split(" ", 1)
                if queue and wanted == method and part in path:
                    return queue.popleft()
        return None

    def count(self, method: str, part: str) -> int:
        return sum(1 for verb, path, _ in self.requests if verb == method and part in path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    # -- answers ------------------------------------------------------------------------------------

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _error(self, status: int, code: str = "", message: str = "") -> None:
        self._answer(status, b"", **({"X_Error_Code": code} if code else {}), X_Error_Message=message or code)

    def _file(self, content: bytes, etag: str, **headers: str) -> None:
        begin, status = 0, 200
        asked = self.headers.get("Range", "")
        fits = self.headers.get("If-Range") in (None, f'"{etag}"')
        if asked.startswith("bytes=") and fits:
            first, _, last = asked[6:].partition("-")
            begin, status = int(first), 206
            end = int(last) + 1 if last else len(content)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            content = content[:end]
        body = content[begin:]
        fault = self.server.fault(self.command, self.path)
        if fault is not None and fault[0] == "status":
            return self._error(fault[1])
        if fault is not None and fault[0] == "wait":
            time.sleep(fault[1])
        self.send_response(status)
        for name, value in {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault is not None and fault[0] == "cut":
            self.wfile.write(body[: fault[1]])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        self.wfile.write(body)
        return None

    # -- routes -------------------------------------------------------------------------------------

    def _route(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.command, self.path, dict(self.headers)))
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        query = parse_qs(urlsplit(self.path).query)
        if parts[0] == "files":
            name = "/".join(parts[1:])
            if name not in self.server.files:
                return self._error(404)
            content = self.server.files[name]
            return self._file(content, sha256(content)[:20], Content_Type="application/octet-stream")
        if parts[:2] == ["github", "repos"]:
            release = self.server.releases.get("/".join(parts[2:]))
            return self._json(release) if release else self._error(404)
        if parts[0] == "lfs":
            self.server.uploads[parts[1]] = self.body
            return self._answer(200)
        if parts[0] == "verify":
            return self._json({})
        if parts[0] == "api":
            return self._api(parts[1:], query)
        if parts[0] == "datasets":
            parts = parts[1:]
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return self._batch()
        return self._error(404)

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _repo(self, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None:
            self._error(401, "RepoNotFound", "Repository not found")
        elif repo.gated and "Authorization" not in self.headers:
            self._error(401, "GatedRepo", "Access to this repository is restricted")
            return None
        return repo

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None:
            return None
        commit = repo.resolve(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if path not in repo.commits[commit]:
            return self._error(404, "EntryNotFound")
        content = repo.commits[commit][path]
        etag = self.server.false_sha256.get(path) or (sha256(content) if is_lfs(path) else git_id(content))
        return self._file(content, etag, X_Repo_Commit=commit, Content_Type="application/octet-stream")

    def _api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if parts == ["repos", "create"]:
            asked = json.loads(self.body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.server.repos.setdefault(name, Repo())
            self.server.repos[name].commit({})
            return self._json({"url": f"{self.server.url}/{name}", "id": name})
        if parts == ["validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts == ["whoami-v2"]:
            return self._json({"name": "user", "type": "user", "orgs": []})
        name, rest = "/".join(parts[1:3]), parts[3:]
        if (repo := self._repo(name)) is None:
            return None
        revision = rest[1] if len(rest) > 1 else "main"
        if rest[:1] == ["branch"]:
            repo.branches[revision] = repo.branches["main"]
            return self._json({}, 201)
        commit = repo.resolve(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        files = repo.commits[commit]
        if not rest or rest[0] == "revision":
            return self._json(
                {"id": name, "sha": commit, "siblings": [self._sibling(p, c) for p, c in files.items()]}
            )
        if rest[0] == "tree":
            return self._json(
                [{"type": "file", "path": p, "size": len(c), "oid": git_id(c)} for p, c in files.items()]
            )
        if rest[0] == "preupload":
            asked = json.loads(self.body)["files"]
            answers = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if is_lfs(item["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": git_id(files[item["path"]]) if item["path"] in files else None,
                }
                for item in asked
            ]
            return self._json({"files": answers})
        if rest[0] == "commit":
            fault = self.server.fault("POST", self.path)
            return self._error(fault[1], message="refused") if fault else self._commit(name, repo, revision)
        return self._error(404)

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_id(content)}
        if is_lfs(path):
            entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def _batch(self) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            oid = item["oid"]
            actions = {
                "upload": {"href": f"{self.server.url}/lfs/{oid}"},
                "verify": {"href": f"{self.server.url}/verify/{oid}"},
            }
            objects.append({**item, "authenticated": True, "actions": actions})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, branch: str) -> None:
        changes: dict[str, bytes] = {}
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                changes[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                changes[item["value"]["path"]] = self.server.uploads[item["value"]["oid"]]
        commit = repo.commit(changes, branch)
        self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"}
        )
