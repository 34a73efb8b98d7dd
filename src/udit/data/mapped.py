"""Images in .npz files too large for memory: the arrays are memory-mapped where they lie in the files."""

from __future__ import annotations

import functools
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from udit.data.sources import Labels, Pixels
from udit.data.verify import remember
from udit.data.zipped import Zip
from udit.errors import UserError
from udit.files import cache_folder

Array = tuple[Path, str, tuple[int, ...]]
"""A file, the key of an array in it that is not compressed, and its shape [N, H, W], [N, H, W, 1] or [N, H, W, 3]."""
CHUNK = 2**22


class Mapped:
    """A source of images that the system reads from the disk, and forgets again where memory is scarce."""

    def __init__(self, arrays: Sequence[Array], labels: Labels, names: Sequence[str], held_out: Labels) -> None:
        """Maps the arrays; reads none of them."""
        self._arrays, self.labels, self.names, self.held_out = list(arrays), labels, names, held_out
        self._ends = np.cumsum([0, *(shape[0] for _, _, shape in arrays)])
        digest, times = hashlib.sha256(labels.tobytes() + held_out.tobytes()), []
        for path, key, shape in arrays:
            with zipfile.ZipFile(path) as archive:
                digest.update(f"{key} {shape} {archive.getinfo(f'{key}.npy').CRC}\n".encode())
            times.append(path.stat().st_mtime_ns)
        self.fingerprint = digest.hexdigest()
        self._mark = hashlib.sha256(f"{self.fingerprint} {times}".encode()).hexdigest()
        self._mapped = [_mapped(*array) for array in arrays]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image(self, i: int) -> Pixels:
        """Image ``i``, [C, H, W]."""
        number = int(np.searchsorted(self._ends, i, side="right")) - 1
        found = self._mapped[number][i - self._ends[number]]
        return np.ascontiguousarray(found[None] if found.ndim == 2 else found.transpose(2, 0, 1))

    def verify(self) -> None:
        """Compares every array with the checksum in its file, once while the files do not change.

        Raises:
            UserError: one is damaged.
        """
        mark = cache_folder() / "verified" / self._mark
        if mark.exists():
            return
        for path, key, _ in self._arrays:
            try:
                with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
                    for _ in iter(functools.partial(stream.read, CHUNK), b""):
                        pass  # the last read compares the checksum
            except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                detail = " ".join(str(error).split())[:120]
                raise UserError(f"{path} holds a damaged {key} ({detail}); copy or write it again") from None
        remember(mark)


def _mapped(path: Path, key: str, shape: tuple[int, ...]) -> Pixels:
    archive = Zip(path)
    offset, _ = archive.place(list(archive.names).index(f"{key}.npy"))
    with path.open("rb") as stream:
        stream.seek(offset)
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        read(stream)
        begins = stream.tell()
    return np.memmap(path, np.uint8, "r", begins, shape)
