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
PACKED_NAMES = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""How their names end."""
BLOCK = tarfile.BLOCKSIZE
CHUNK = 2**20
NEAR = 2**15
"""Bytes that are read together where the next header is at most so far away."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file."""

    name: str
    offset: int
    """Of its first byte."""
    size: int


class Listing:
    """A tar file whose headers are read one after another, and what small members hold."""

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            UserError: it cannot be read.
        """
        self.path = path
        try:
            self._stream = path.open("rb")
        except OSError as error:
            raise _unreadable(path, error) from None
        self._start, self._chunk = 0, b""

    def __enter__(self) -> Listing:
        """The listing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._stream.close()

    def members(self) -> Iterator[Member]:
        """The files of a tar file, in order; reads headers alone, and in the end what follows them.

        Yields:
            Files; folders, links and other things are passed over.

        Raises:
            UserError: no tar file, a compressed one, or one with a hole: a damaged header, or an end that is not there.
        """
        try:
            yield from self._members(self.path.stat().st_size)
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            raise error if isinstance(error, UserError) else _unreadable(self.path, error) from None

    def _members(self, size: int) -> Iterator[Member]:
        path, place = self.path, 0
        _check_beginning(self._header(0)[:6], path)
        slow: tarfile.TarFile | None = None
        while (block := self._header(place)).count(0) != len(block):
            # what one header says of all that follow is known to tarfile alone
            member = None if slow is not None and slow.pax_headers else _plain(block, place)
            if member is None:
                slow = slow or _opened(self._stream)
                found = _found(slow, self._stream, place, path)
                name, stop = found.name, slow.offset
                member = Member(name, found.offset_data, found.size) if found.isreg() else None
            else:
                name, stop = member.name, member.offset + -(-member.size // BLOCK) * BLOCK
            if stop > size:
                raise UserError(_hole(path, f"it ends within {name!r}"))
            if member is not None:
                yield member
            place = stop
        if not block:
            raise UserError(_hole(path, f"it ends at byte {place:,} without the zeros that mark the end"))
        self._stream.seek(place)
        while rest := self._stream.read(CHUNK):
            if rest.count(0) != len(rest):
                end = place + BLOCK
                raise UserError(_hole(path, f"zeros in place of a header before byte {end:,}, and more after them"))

    def _header(self, place: int) -> bytes:
        """The block at a place; shorter at the end of the file."""
        first = place - self._start
        if first < 0 or first + BLOCK > len(self._chunk):
            near = first <= len(self._chunk) + NEAR
            self._start, first = place, 0
            self._chunk = os.pread(self._stream.fileno(), NEAR if near else BLOCK, place)
        return self._chunk[first : first + BLOCK]

    def read(self, member: Member) -> bytes:
        """What a member holds.

        Raises:
            UserError: the file has become shorter.
        """
        first = member.offset - self._start
        if first >= 0 and first + member.size <= len(self._chunk):
            return self._chunk[first : first + member.size]
        return read_member(self.path, member.offset, member.size)


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


def _plain(block: bytes, place: int) -> Member | None:
    """The file whose header a block is, as POSIX.1-1988 has it (ustar); None where it may be anything else."""
    kind, magic, prefix = block[156:157], block[257:263], block[345:346]
    if kind not in (b"0", b"\0") or magic not in (b"ustar\0", b"ustar ") or (prefix != b"\0" and magic == b"ustar "):
        return None
    try:
        size, check = int(_text(block[124:136]) or b"0", 8), int(_text(block[148:156]), 8)
    except ValueError:  # sizes beyond 8 GiB are binary
        return None
    name = _text(block[:100])
    if check != sum(block) - sum(block[148:156]) + 8 * ord(" ") or size < 0 or not name or name.endswith(b"/"):
        return None
    whole = _text(block[345:500]) + b"/" + name if prefix != b"\0" else name
    return Member(whole.decode(tarfile.ENCODING, "surrogateescape"), place + BLOCK, size)


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0].strip()


def _opened(stream: BinaryIO) -> tarfile.TarFile:
    stream.seek(0)
    return tarfile.open(fileobj=stream, mode="r:")


def _found(archive: tarfile.TarFile, stream: BinaryIO, place: int, path: Path) -> tarfile.TarInfo:
    """The member whose header is at a place, by tarfile, whose own loop ends in silence at a damaged header."""
    stream.seek(place)
    try:
        found = tarfile.TarInfo.fromtarfile(archive)
    except tarfile.HeaderError:
        if not place:
            raise UserError(
                f"{path} cannot be read as a tar file (no header at its beginning); write it again"
            ) from None
        raise UserError(_hole(path, f"the header at byte {place:,} is damaged")) from None
    if found.sparse is not None:
        raise UserError(f"{path} holds {found.name!r} as a sparse file; write it again without --sparse")
    return found


def _unreadable(path: Path, error: Exception) -> UserError:
    detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
    return UserError(f"{path} cannot be read as a tar file ({detail}); copy or write it again")


def _hole(path: Path, what: str) -> str:
    return f"{path} has a hole or was cut off: {what}; copy or write it again"
