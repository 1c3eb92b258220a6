"""A stand-in for the Hugging Face Hub's HTTP API on loopback: repositories in memory, one branch, whole files.

It speaks what ``huggingface_hub`` asks for to create a repository, to commit small files to it, and to read them back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: owner/name to path in it to content.
        private: those that were created as private.
        commits: for each commit its repository and message.
        token: what a writer has to send.
    """

    token = "hf_test"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that answers inside the ``with`` statement."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer(401, {"error": "Invalid username or password."})
        match self._path():
            case ["api", "repos", "create"]:
                wanted = json.loads(body)
                name = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
                if name in self.server.repositories:
                    return self._answer(409, {"error": "You already created this model repo", "url": self._url(name)})
                self.server.repositories[name] = {}
                if wanted.get("private") or wanted.get("visibility") == "private":
                    self.server.private.add(name)
                return self._answer(200, {"url": self._url(name)})
            case ["api", "validate-yaml"]:
                return self._answer(200, {"errors": [], "warnings": []})
            case ["api", "models", owner, name, "preupload", _]:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self._answer(200, {"files": files})
            case ["api", "models", owner, name, "commit", _]:
                return self._commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
        return self._answer(404, {"error": f"the stand-in has no {self.path}"})

    def do_GET(self) -> None:
        match self._path():
            case ["api", "models", owner, name, *_] if (files := self._files(owner, name)) is not None:
                names = [{"rfilename": path} for path in sorted(files)]
                about = {"id": f"{owner}/{name}", "sha": self._revision(), "siblings": names, "private": False}
                if "tree" in self._path():
                    return self._answer(200, [self._entry(path, content) for path, content in sorted(files.items())])
                return self._answer(200, about)
            case [owner, name, "resolve", _, *path] if "/".join(path) in (self._files(owner, name) or {}):
                content = self._files(owner, name)["/".join(path)]  # type: ignore[index]
                return self._answer(200, content)
            case [owner, name, "resolve", *_] if self._files(owner, name) is not None:
                return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        # The real one does not tell what is not there from what may not be seen.
        return self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append((repository, value["summary"]))
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                return self._answer(400, {"error": f"the stand-in does not know {line['key']}"})
        url = f"{self._url(repository)}/commit/{self._revision()}"
        return self._answer(200, {"success": True, "commitOid": self._revision(), "commitUrl": url})

    def _path(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _files(self, owner: str, name: str) -> dict[str, bytes] | None:
        return self.server.repositories.get(f"{owner}/{name}")

    def _url(self, name: str) -> str:
        return f"{self.server.address}/{name}"

    def _revision(self) -> str:
        return f"{len(self.server.commits):040x}"

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", self._revision())
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
