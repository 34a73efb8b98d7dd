"""Digests of files as fields of specs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from udit.spec.base import Spec
from udit.spec.words import Takes

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Takes("64 hex digits, as `sha256sum` prints them")]
"""In hex, as ``sha256sum`` prints it."""


class FileFacts(Spec):
    """Size and digest of a file, by which a damaged or altered one is found."""

    bytes: NonNegativeInt
    sha256: Sha256
