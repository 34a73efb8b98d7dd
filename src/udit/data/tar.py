"""Members of a .tar file by their offsets, so that each can be read by itself; a file with a hole is refused."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from udit.errors import UserError

PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
"""How compressed files begin."""
CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file."""

    name: str
    offset: int
    """Of its first byte."""
    size: int


def members(path: Path) -> Iterator[Member]:
    """The files of a tar file, in order; reads headers alone, and in the end what follows them.

    Yields:
        Files; folders, links and other things are passed over.

    Raises:
        UserError: no tar file, a compressed one, or one with a hole: a damaged header, or an end that is not there.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            _check_beginning(stream.read(6), path)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                # not by its own loop, which ends in silence at a damaged header, and keeps every member in memory
                stream.seek(0)
                while member := _next(archive, stream, path):
                    if member.sparse is not None:
                        raise UserError(
                            f"{path} holds {member.name!r} as a sparse file; write it again without --sparse"
                        )
                    if archive.offset > size:
                        raise UserError(_hole(path, f"it ends within {member.name!r}"))
                    if member.isreg():
                        yield Member(member.name, member.offset_data, member.size)
                    stream.seek(archive.offset)
            end = stream.tell()
            while chunk := stream.read(CHUNK):
                if chunk.count(0) != len(chunk):
                    raise UserError(_hole(path, f"zeros in place of a header before byte {end:,}, and more after them"))
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} cannot be read as a tar file ({detail}); copy or write it again") from None


def read_member(path: Path, offset: int, size: int) -> bytes:
    """The bytes of a member.

    Raises:
        UserError: the file is not there, or is shorter.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            found = os.pread(stream.fileno(), size, offset)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); put it back") from None
    if len(found) != size:
        raise UserError(f"{path} has become shorter since it was listed; put it back")
    return found


def _check_beginning(head: bytes, path: Path) -> None:
    packed = next((name for start, name in PACKED.items() if head.startswith(start)), None)
    if packed:
        raise UserError(
            f"{path} is compressed ({packed}), so that no image can be read by itself; unpack it to a plain .tar"
        )
    if not head:
        raise UserError(f"{path} is empty; copy or write it again")


def _next(archive: tarfile.TarFile, stream: BinaryIO, path: Path) -> tarfile.TarInfo | None:
    """The member whose header is where the stream is; None at the block of zeros that marks the end."""
    place = stream.tell()
    block = stream.read(tarfile.BLOCKSIZE)
    if not block:
        raise UserError(_hole(path, f"it ends at byte {place:,} without the zeros that mark the end"))
    if block.count(0) == len(block):
        return None
    stream.seek(place)
    try:
        return tarfile.TarInfo.fromtarfile(archive)
    except tarfile.HeaderError:
        if not place:
            raise UserError(
                f"{path} cannot be read as a tar file (no header at its beginning); write it again"
            ) from None
        raise UserError(_hole(path, f"the header at byte {place:,} is damaged")) from None


def _hole(path: Path, what: str) -> str:
    return f"{path} has a hole or was cut off: {what}; copy or write it again"
