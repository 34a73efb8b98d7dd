"""What configs of data sets have in common: their parts, and how image files are cropped; free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from udit.data.condition_config import AnyCondition
from udit.spec.base import Spec

Share = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=1, le=4096)]
"""Pixels."""


class DataInfo(Spec):
    """What the rest of a run needs to know about its data before any image is read."""

    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt
    frames: PositiveInt | None = None
    """Of a clip; None where the data are images."""
    id2label: tuple[str, ...]
    """Class names in label order."""
    labelled: bool = True
    """Whether images have labels; without, a model of them is unconditional."""
    captioned: bool = False
    """Whether images have texts."""
    latents: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """(c, h, w) of the latents, where the data set holds them in place of images."""


class SplitData(Spec):
    """Fields of every data set: which share of each class the generator is not trained on."""

    judge_share: Share = 0.2
    """Trains the classifier that judges samples; the generator never sees it."""
    test_share: Share | None = 0.1
    """Seen by neither: validation loss, real-to-real distance, memorisation check. None takes the data set's own test
    images, and judge_share is a share of the others."""
    condition: AnyCondition = None
    """What the network sees beside the noisy image: previous (the state before), low-resolution, mask or grey."""

    @model_validator(mode="after")
    def _check_shares(self) -> SplitData:
        if self.judge_share + (self.test_share or 0) >= 1:
            raise ValueError(
                f"judge_share {self.judge_share:g} and test_share {self.test_share:g} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self

    @property
    def mirrored(self) -> bool:
        """Whether half of the training images are mirrored left to right."""
        return False

    @property
    def captioned(self) -> bool:
        """Whether images have texts."""
        return False

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """All shapes (height, width) that images may have, where the configuration says them."""
        return ()

    @property
    def encoded(self) -> bool:
        """Whether a VAE's latents are there in place of images."""
        return False

    def scored(self) -> Self:
        """The same data as scores see them.

        Raises:
            UserError: there are no images.
        """
        return self


class ImageFiles(SplitData):
    """What data sets of image files of any size have in common."""

    size: Side | tuple[Side, Side] = 64
    """Side of the square, or [H, W], that ADM's centre crop cuts."""
    buckets: tuple[tuple[Side, Side], ...] = ()
    """Further shapes [H, W] beside size. An image is cropped to the one whose proportions are nearest to its own, and
    the images of a step are all of one; takes a model of images of any size. Scores and samples are of size."""
    crops: Annotated[int, Field(ge=1, le=31)] = 1
    """Crops of an image, evenly spaced along the side that is too long, of which training draws one by (seed, position
    in the run); an odd number, so that the centre is one of them. All else sees the centre."""
    channels: Literal[1, 3] = 3
    """3 is RGB, 1 grey."""
    bits: Annotated[int, Field(ge=8, le=16)] = 16
    """Depth of grey in files of 16 bits: 12 where a camera or scanner has put 12 bits into them. Files of 8 bits, and
    those of colour, are read as they are."""
    deep: bool = False
    """Keeps all bits of files of 16 bits, grey or colour; off reduces them to 8. Generated images have 8."""
    flip: bool = True
    """Mirrors half of the training images left to right, chosen by (seed, position in the run)."""
    verify: Literal["full", "headers"] = "full"
    """How images are checked before the first step where they need more than 1 GB of memory decoded (smaller data sets
    are decoded and kept): decode each one once and not again while the files do not change, or read headers only."""

    @property
    def mirrored(self) -> bool:
        """Whether half of the training images are mirrored left to right."""
        return self.flip

    def scored(self) -> Self:
        """The same data as scores see them: of one size, and of 8 bits as generated images are."""
        return self.replace(deep=False, buckets=(), crops=1)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of an image; with buckets, of samples."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """All shapes that images may have."""
        return (self.shape, *self.buckets)

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.crops % 2 == 0:
            raise ValueError(f"crops is {self.crops}; an odd number has the centre among them, e.g. {self.crops + 1}")
        for i, (height, width) in enumerate(self.shapes):
            if (height, width) in self.shapes[:i]:
                raise ValueError(f"buckets hold {height}x{width}, which is there already; give each shape once")
        return self
