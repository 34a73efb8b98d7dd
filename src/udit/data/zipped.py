"""Members of a .zip file by their offsets, so that each can be read by itself, from threads and forked workers."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from array import array
from pathlib import Path

import numpy as np

from udit.data.names import Names
from udit.errors import UserError

LOCAL = struct.Struct("<4s22xHH")
"""Header before a member's bytes: its mark, and the lengths of name and extra field (PKWARE APPNOTE, 4.3.7)."""


class Zip:
    """The files of a .zip file; its directory is read once and kept in arrays."""

    def __init__(self, path: Path) -> None:
        """Reads the directory.

        Raises:
            UserError: no zip file, a damaged one, or a member that is encrypted or packed otherwise than by deflate.
        """
        self.path = path
        self._header, self._packed, self._size = array("q"), array("q"), array("q")
        self._check, self._method = array("L"), array("B")
        names = []
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if member.is_dir():
                        continue
                    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        how = "encrypted" if member.flag_bits & 1 else f"packed by method {member.compress_type}"
                        raise UserError(f"{path} holds {member.filename!r} {how}; zip it again, stored or deflated")
                    names.append(member.filename)
                    self._header.append(member.header_offset)
                    self._packed.append(member.compress_size)
                    self._size.append(member.file_size)
                    self._check.append(member.CRC)
                    self._method.append(member.compress_type)
        except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, struct.error) as error:
            if isinstance(error, UserError):
                raise
            detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(f"{path} cannot be read as a zip file ({detail}); copy or write it again") from None
        self.names = Names(names)
        self.sizes = np.array(self._size, np.int64)

    def place(self, i: int) -> tuple[int, int]:
        """Where the bytes of member i begin in the file, and how many there are.

        Raises:
            UserError: it is not where the directory says.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                mark, name_length, extra_length = LOCAL.unpack(os.pread(stream.fileno(), LOCAL.size, self._header[i]))
            if mark != b"PK\x03\x04":
                raise ValueError("no member is where the directory says")
        except (OSError, ValueError, struct.error) as error:
            raise self._damaged(i, error) from None
        return self._header[i] + LOCAL.size + name_length + extra_length, self._packed[i]

    def read(self, i: int) -> bytes:
        """The bytes of member i.

        Raises:
            UserError: it is damaged, or the file has changed.
        """
        offset, packed = self.place(i)
        try:
            with self.path.open("rb", buffering=0) as stream:
                found = os.pread(stream.fileno(), packed, offset)
            if self._method[i] == zipfile.ZIP_DEFLATED:
                opened = zlib.decompressobj(-zlib.MAX_WBITS)
                found = opened.decompress(found, self._size[i] + 1)
            if len(found) != self._size[i] or zlib.crc32(found) != self._check[i]:
                raise ValueError("its checksum is wrong")
        except (OSError, ValueError, zlib.error) as error:
            raise self._damaged(i, error) from None
        return found

    def _damaged(self, i: int, error: Exception) -> UserError:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        return UserError(f"{self.path} holds a damaged {self.names[i]!r} ({detail}); copy or write it again")
