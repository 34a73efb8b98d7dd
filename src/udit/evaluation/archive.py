"""Results of several settings beside each other: each under a name of its own, and the latest under the plain one."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import ValidationError


class Kept(Protocol):
    """A result that knows what it is of: ``Report`` and ``Scores``."""

    @property
    def setting(self) -> dict[str, Any]:
        """What it depends on, as plain values: weights, sampling, number of images, and how it was scored."""

    def write(self, path: Path) -> None:
        """Writes it as JSON."""

    @classmethod
    def model_validate_json(cls, json_data: str) -> Self:
        """Reads it."""


def path_of(plain: Path, setting: dict[str, Any]) -> Path:
    """The file of a setting beside a plain one: ``metrics-0123456789.json`` beside ``metrics.json``."""
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:10]
    return plain.with_name(f"{plain.stem}-{digest}{plain.suffix}")


def keep(result: Kept, plain: Path) -> None:
    """Writes a result under its setting's name, and under the plain one, which says that all else is there.

    A result of another setting that has only the plain name, as older versions wrote it, gets its own name first.

    Raises:
        OSError: the disk refuses it.
    """
    plain.parent.mkdir(parents=True, exist_ok=True)
    for before in _read(type(result), plain):
        if not (own := path_of(plain, before.setting)).exists():
            before.write(own)
    result.write(path_of(plain, result.setting))
    result.write(plain)


def _read(kind: type[Kept], path: Path) -> Iterator[Kept]:
    """The result in a file, if there is one."""
    with contextlib.suppress(OSError, UnicodeDecodeError, ValidationError):
        yield kind.model_validate_json(path.read_text(encoding="utf-8"))
