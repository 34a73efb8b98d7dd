"""Configs of where pictures come from, free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.config.base import Spec

if TYPE_CHECKING:
    from udit.data.sources import Source

Share = Annotated[float, Field(ge=0, lt=1)]


class DataInfo(Spec):
    """What the rest of a run needs to know of its data before it reads a picture."""

    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt
    id2label: tuple[str, ...]
    """Class names in label order."""


class _Split(Spec):
    """Which share of each class is kept from the generator."""

    judge_share: Share = 0.2
    """Trains the classifier that judges samples; the generator never sees it."""
    test_share: Share = 0.1
    """Seen by neither: validation loss, real-to-real distance, memorisation check."""

    @model_validator(mode="after")
    def _check_shares(self) -> _Split:
        if self.judge_share + self.test_share >= 1:
            raise ValueError(
                f"judge_share {self.judge_share:g} and test_share {self.test_share:g} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self


class DigitsData(_Split):
    """scikit-learn's handwritten digits: 1,797 real grey images of 8x8, 10 classes (UCI, Alpaydin & Kaynak 1998)."""

    kind: Literal["digits"] = "digits"
    judge_share: Share = 0.35
    test_share: Share = 0.15

    def info(self) -> DataInfo:
        """Known without loading anything."""
        return DataInfo(channels=1, height=8, width=8, id2label=tuple("0123456789"))

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.sources import digits

        return digits()


class FolderData(_Split):
    """A folder of class folders of pictures (PNG, JPEG, WebP); classes are the folder names in sorted order."""

    kind: Literal["folder"] = "folder"
    root: Path
    size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Side of the square that ADM's centre crop cuts."""
    channels: Literal[1, 3] = 3
    """3 is RGB, 1 grey."""
    flip: bool = True
    """Mirrors half of the training pictures, by a key of (seed, position in the run)."""

    def info(self) -> DataInfo:
        """From the folder's names.

        Raises:
            UserError: missing or empty folder, or an empty class folder.
        """
        from udit.data.sources import class_names

        return DataInfo(
            channels=self.channels, height=self.size, width=self.size, id2label=tuple(class_names(self.root))
        )

    def build(self) -> Source:
        """The listed pictures; decoded when asked for."""
        from udit.data.sources import ImageFolder

        return ImageFolder(self.root, self.size, self.channels)


DataConfig = Annotated[DigitsData | FolderData, Field(discriminator="kind")]
