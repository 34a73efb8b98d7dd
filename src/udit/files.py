"""Digests: JSON that carries its own, so that a torn or altered file does not pass for a whole one, and any file's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from udit.spec.digest import FileFacts


def seal(manifest: dict[str, Any]) -> str:
    """The manifest's text, its own sha256 last."""
    digest = hashlib.sha256(_canonical(manifest).encode()).hexdigest()
    return _canonical({**manifest, "digest": digest})


def unseal(text: str) -> dict[str, Any]:
    """The manifest in a text of ``seal``.

    Raises:
        ValueError: no JSON object, or not what was sealed.
        RecursionError: nested too deeply to be one.
    """
    manifest = json.loads(text)
    if not isinstance(manifest, dict):
        raise ValueError("it holds no JSON object")
    unsealed = {key: value for key, value in manifest.items() if key != "digest"}
    if text != seal(unsealed):
        raise ValueError("it does not match its own digest")
    return unsealed


def file_sha256(path: Path) -> str:
    """Of a file's bytes, as hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(path: Path) -> FileFacts:
    """Size and digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    return FileFacts(bytes=path.stat().st_size, sha256=file_sha256(path))


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
