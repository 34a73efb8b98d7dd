"""A stand-in for the Hugging Face hub: serves parquet files to `datasets`, and the files of a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40
MISSING = b'{"error": "not found"}'
GATED = b'{"error": "Access to model o/gated is restricted. You must be authenticated to access it."}'


class Hub(ThreadingHTTPServer):
    """Serves the same files as the data set ``o/d`` and as the model ``o/m``, and remembers what was asked for.

    The model ``o/gated`` tells its commit and gives no file.
    """

    block_on_close = False  # connections that clients keep open end with their process

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.commits = {COMMIT: files}
        self.newest = COMMIT
        self.asked: list[str] = []

    def push(self, commit: str, files: dict[str, bytes]) -> None:
        """Makes a new commit the newest."""
        self.commits[commit] = files
        self.newest = commit

    def files_at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a commit or of ``main``; None if there is no such revision."""
        return self.commits.get(self.newest if revision == "main" else revision)

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """The files that were sent, in whole or in part."""
        sent = ("GET /datasets/o/d/resolve/", "GET /o/m/resolve/")
        return [line.split("/")[-1] for line in self.asked if line.startswith(sent)]


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that answers as long as the context lasts."""
    with Hub(files) as hub:
        Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


def use(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process take the stand-in for the hub: the variables are read when the package is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    url = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path, _, query = self.path.partition("?")
        self.server.asked.append(f"{self.command} {path}")
        found = re.fullmatch(r"(?:/api/(?:models|datasets)|/datasets|)/(o/\w+)(?:/([a-z-]+)(?:/([^/]+)/?(.*))?)?", path)
        if found is None or found[1] not in ("o/d", "o/m", "o/gated"):
            self._send(MISSING, 404, {"X-Error-Code": "RepoNotFound"})
            return
        name, what, revision, rest = found[1], found[2], found[3] or "main", found[4] or ""
        files = self.server.files_at(revision)
        if files is None:
            self._send(MISSING, 404, {"X-Error-Code": "RevisionNotFound"})
        elif what == "resolve" and name == "o/gated":
            self._send(GATED, 403, {"X-Error-Code": "GatedRepo"})
        elif what == "resolve":
            self._send_file(files.get(rest), self._commit(revision))
        elif what == "tree":
            self._send(json.dumps(self._entries(files, rest, "recursive=true" in query.lower())).encode())
        elif what == "paths-info":
            self._send(json.dumps([self._entry(files, name) for name in files if name in body]).encode())
        else:
            info = {"id": name, "sha": self._commit(revision), "siblings": [{"rfilename": name} for name in files]}
            self._send(json.dumps({**info, "tags": []}).encode())

    def _commit(self, revision: str) -> str:
        return self.server.newest if revision == "main" else revision

    @staticmethod
    def _entry(files: dict[str, bytes], name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}

    def _entries(self, files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
        here = f"{folder}/" if folder else ""
        inside = [name for name in files if name.startswith(here)]
        if recursive:
            return [self._entry(files, name) for name in inside]
        folders = {here + name[len(here) :].split("/")[0] for name in inside if "/" in name[len(here) :]}
        entries: list[dict[str, object]] = [
            {"type": "directory", "path": name, "size": 0, "oid": "c" * 40} for name in sorted(folders)
        ]
        return entries + [self._entry(files, name) for name in inside if "/" not in name[len(here) :]]

    def _send_file(self, data: bytes | None, commit: str) -> None:
        if data is None:
            self._send(MISSING, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(data, 200, headers)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        end = min(int(last or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
        self._send(data[int(first) : end + 1], 206, headers)

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
