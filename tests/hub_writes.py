"""A stand-in for the part of the hub that takes uploads: repositories, branches, large files, commits, and refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from hub_stand_in import MISSING, _Answers

OWNER, TOKEN, READER = "me", "hf_write", "hf_read"
"""Whose token may write; a token that may only read."""
DENIED = b'{"error": "You have read access but not the required permissions for this operation"}'


@dataclass
class Repository:
    """Commits, each with all of its files, and branches."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Adds a commit to a branch; returns its name."""
        name = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits.append((name, files))
        self.branches[branch] = name
        return name

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        """The files at a branch or commit."""
        return dict(self.commits).get(self.branches.get(revision, revision))


class WritableHub(ThreadingHTTPServer):
    """Repositories of ``me``; others may be there, and are not ours to write to."""

    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Writes)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        """Large files by their sha256, committed or not."""
        self.asked: list[str] = []
        self.stall: Event | None = None
        """Set by a test: the second large file is taken and never answered; the event says that it has begun."""

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """Makes a repository with one commit."""
        made = self.repositories[name] = Repository(private)
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **files})
        return made

    def sent(self) -> int:
        """How many large files were sent so far."""
        return sum(line.startswith("PUT ") for line in self.asked)


@contextmanager
def taking_uploads() -> Iterator[WritableHub]:
    """A hub that takes uploads as long as the context lasts."""
    with WritableHub() as hub:
        Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class _Writes(_Answers):
    server: WritableHub

    def do_PUT(self) -> None:  # noqa: N802  the name that http.server looks for
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.server.asked.append(f"{self.command} {path}")
        if self.command == "PUT":
            self._take(path.rpartition("/")[2], body)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            wrong = "license: wrong" in json.loads(body)["content"]
            told = {"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}] if wrong else []}
            self._json(told | {"warnings": []}, 400 if wrong else 200)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._json({"objects": [self._wanted(entry) for entry in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(\w[\w-]*)(?:/([^/]+)/?(.*))?)?", path):
            self._repository(found[1], found[2] or "info", found[3] or "main", found[4] or "", body)
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.*)", path):
            self._repository(found[1], "resolve", found[2], found[3], body)
        else:
            self._send(MISSING, 404)

    def _user(self) -> str | None:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        return {TOKEN: OWNER, READER: "reader"}.get(token)

    def _may_write(self, name: str) -> bool:
        if self._user() is None:
            self._send(b'{"error": "Invalid credentials in Authorization header"}', 401)
        elif self._user() != name.split("/")[0]:
            self._send(DENIED, 403)
        else:
            return True
        return False

    def _create(self, values: dict[str, Any]) -> None:
        name = f"{values['organization']}/{values['name']}"
        if not self._may_write(name):
            return
        if name in self.server.repositories:
            self._send(b'{"error": "You already created this model repo"}', 409)
            return
        self.server.add(name, {}, private=values.get("visibility") == "private")
        self._json({"url": f"{self.server.endpoint}/{name}"})

    def _repository(self, name: str, what: str, revision: str, rest: str, body: bytes) -> None:
        found = self.server.repositories.get(name)
        if found is None or (found.private and self._user() != name.split("/")[0]):
            self._send(MISSING, 404, {"X-Error-Code": "RepoNotFound"})
            return
        if what in ("branch", "preupload", "commit") and not self._may_write(name):
            return
        if what == "branch":
            there = revision in found.branches
            found.branches.setdefault(revision, found.branches["main"])
            self._json({}, 409 if there else 200)
            return
        files = found.files(revision)
        if files is None:
            self._send(MISSING, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        commit = found.branches.get(revision, revision)
        if what == "preupload":
            self._json({"files": [self._mode(entry["path"], files) for entry in json.loads(body)["files"]]})
        elif what == "commit":
            self._commit(found, revision, files, [json.loads(line) for line in body.splitlines()])
        elif what == "tree":
            self._json(self._entries(files, rest, recursive=True))
        elif what == "resolve":
            self._send_file(files.get(rest), commit)
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "private": found.private, "siblings": siblings, "tags": []})

    @staticmethod
    def _mode(path: str, files: dict[str, bytes]) -> dict[str, Any]:
        large = path.endswith((".safetensors", ".png"))
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in files:
            data = files[path]
            git = hashlib.sha1(b"blob %d\0" % len(data) + data)
            answer["oid"] = (hashlib.sha256(data) if large else git).hexdigest()
        return answer

    def _wanted(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["oid"] in self.server.large:
            return entry
        return entry | {"actions": {"upload": {"href": f"{self.server.endpoint}/large/{entry['oid']}"}}}

    def _take(self, oid: str, body: bytes) -> None:
        if self.server.stall is not None and self.server.large:
            self.server.stall.set()
            time.sleep(60)  # until the client is gone, or the test
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self._send(b"")

    def _commit(self, found: Repository, branch: str, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        changed = dict(files)
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header" and value.get("parentCommit") not in (None, found.branches[branch]):
                self._send(b'{"error": "A commit has happened since. Please refresh and try again."}', 412)
                return
            if key == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changed[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del changed[value["path"]]
        name = found.commit(branch, changed)
        self._json({"commitUrl": f"{self.server.endpoint}/o/m/commit/{name}", "commitOid": name})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)
