"""Latents in place of images, as EDM2 encodes a data set (Karras et al. 2024): ``.npy`` files beside ``dataset.json``.

Each is float [2c, h, w], the mean and the standard deviation of a VAE's posterior. Mean and log variance are what a
latent cache holds too.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from udit.data.config import DataInfo, DatasetJsonData
from udit.data.decode import DECODE_ERRORS
from udit.data.sources import Labels
from udit.data.verify import attempts, remember
from udit.errors import UserError
from udit.files import cache_folder

if TYPE_CHECKING:
    from udit.data.encoded import Records

Raw = NDArray[np.float32]
SUFFIX = ".npy"
LEAST = 1e-30
"""Smallest standard deviation: the logarithm of 0 is not finite."""


def describe(data: DatasetJsonData, records: Records) -> DataInfo:
    """What the images were of which these are the latents: RGB, ``data.factor`` pixels for each latent.

    Raises:
        UserError: the first file is damaged or of another shape.
    """
    channels, height, width = _read(records, 0).shape
    return DataInfo(
        channels=3,
        height=height * data.factor,
        width=width * data.factor,
        id2label=records.classes,
        labelled=bool(records.classes),
        latents=(channels // 2, height, width),
    )


class Moments:
    """A source of raw latents in place of images; they have no mirror images."""

    def __init__(self, records: Records) -> None:
        """Takes the listed files; reads the first one's shape."""
        self.records = records
        self.labels: Labels = records.labels
        self.names: Sequence[str] = records.names
        self.held_out: Labels = records.held_out
        self.fingerprint = records.fingerprint
        self._shape = _read(records, 0).shape
        records.notes.warn()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image(self, i: int) -> Any:
        """Raw latent of image ``i``: mean and log variance, float32 [2c, h, w].

        Raises:
            UserError: its file is damaged, or of another shape than the first.
        """
        found = _read(self.records, i)
        if found.shape != self._shape:
            raise UserError(
                f"latents {self.records.called(i)!r} are {list(found.shape)} and the first {list(self._shape)}; all "
                "must have one shape"
            )
        mean, deviation = np.split(found, 2)
        return np.concatenate([mean, 2 * np.log(np.maximum(deviation, LEAST))])

    def read(self, i: int, mirrored: bool, crop: int | None = None) -> Any:
        """The same; nothing is mirrored."""
        assert not mirrored, "the configuration refuses data.flip"
        return self.image(i)

    def verify(self) -> None:
        """Reads every file once while they do not change.

        Raises:
            UserError: files that are damaged; names the first and counts them.
        """
        mark = cache_folder() / "verified" / hashlib.sha256(f"moments {self.records.stamp}".encode()).hexdigest()
        if mark.exists():
            return
        bad = [str(found) for found in attempts(self.image, len(self), "reading") if isinstance(found, UserError)]
        if bad:
            raise UserError(bad[0] + (f" ({len(bad)} of {len(self)} are unusable)" if len(bad) > 1 else ""))
        remember(mark)


def _read(records: Records, i: int) -> Raw:
    """[2c, h, w], as it stands in the file."""
    name = records.called(i)
    opened = records.open(i)
    try:
        data = opened.read_bytes() if isinstance(opened, Path) else opened.read()
        found = npy.read_array(io.BytesIO(data), allow_pickle=False)
    except DECODE_ERRORS as error:
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"latents {name!r} cannot be read as .npy ({detail}); replace or remove them") from None
    if found.ndim != 3 or found.shape[0] % 2 or found.dtype.kind != "f" or not found.size:
        raise UserError(
            f"latents {name!r} are {found.dtype} {list(found.shape)}; mean and deviation are float [2c, h, w]"
        )
    values = found.astype(np.float32)
    if not np.isfinite(values).all() or values[len(values) // 2 :].min() < 0:
        raise UserError(f"latents {name!r} hold NaN, infinity or a deviation below 0; encode them again")
    return values
