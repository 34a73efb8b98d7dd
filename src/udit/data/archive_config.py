"""Configs of data sets whose image files lie in archives and databases; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from udit.data.base_config import ImageFiles
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.data.sources import Source


class DatasetJsonData(ImageFiles):
    """EDM's and StyleGAN's form (Karras et al.): a zip or folder of images, with labels in its dataset.json."""

    kind: Literal["dataset-json"] = "dataset-json"
    root: Path
    """The zip file or the folder. Without dataset.json, or with labels null in it, images have no labels."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty uses the labels' numbers."""
    holds: Literal["images", "moments"] = "images"
    """moments: EDM2's .npy files in place of images, float [2c, h, w] with mean and standard deviation of a VAE's
    posterior. Takes that VAE (codec.kind=vae) with its normalisation (codec.scale, codec.shift); flip is false."""
    factor: Annotated[int, Field(ge=1, le=64)] = 8
    """Pixels for each latent along an axis, where it holds moments."""

    @model_validator(mode="before")
    @classmethod
    def _not_mirrored(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("holds") == "moments":
            return {"flip": False, **values}
        return values

    @model_validator(mode="after")
    def _check_moments(self) -> DatasetJsonData:
        if self.encoded and self.flip:
            raise ValueError("flip is true and the data set holds latents, of which none is mirrored; leave flip out")
        if self.encoded and (self.buckets or self.deep or self.crops > 1):
            raise ValueError("holds is moments, and buckets, crops and deep are of images; leave them out")
        return self

    @property
    def encoded(self) -> bool:
        """Whether a VAE's latents are there in place of images."""
        return self.holds == "moments"

    def scored(self) -> Self:
        """The same data as scores see them.

        Raises:
            UserError: there are no images.
        """
        if self.encoded:
            raise UserError(
                f"{self.root} holds latents and no images to compare samples with; give images of a reference"
            )
        return super().scored()

    def build(self) -> Source:
        """The listed images, decoded when they are read; or latents."""
        from udit.data.dataset_json import records
        from udit.data.encoded import Encoded
        from udit.data.moments import Moments

        return Moments(records(self)) if self.encoded else Encoded(records(self), self)


class WebDatasetData(ImageFiles):
    """Shards of the webdataset library: .tar files in which members of one name up to the first dot are a sample."""

    kind: Literal["webdataset"] = "webdataset"
    root: str
    """A .tar file, a folder of them, or a pattern: shards/train-*.tar, or shards/train-{0000..0146}.tar."""
    test_root: str | None = None
    """Shards of test images, and test_share is null."""
    image: str | None = None
    """Extension of the image's member, e.g. jpg; None takes the one image that a sample has."""
    label: str | None = None
    """Extension of the member that holds the label, a number or a name; json.KEY for a key of a JSON member; none for
    no labels. None takes cls, class, json.label, json.class or json.cls where samples have one of them."""
    caption: str | None = None
    """Extension of the member that holds the texts, e.g. txt, one a line; json.KEY for a string, or a list of them, of
    a JSON member. None where no captions are read."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty uses the labels' numbers, or their names in sorted order."""

    @model_validator(mode="before")
    @classmethod
    def _test_on_its_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("test_root") is not None:
            return {"test_share": None, **values}
        return values

    @property
    def captioned(self) -> bool:
        """Whether images have texts."""
        return self.caption is not None

    def build(self) -> Source:
        """The listed images, decoded when they are read."""
        from udit.data.encoded import Encoded
        from udit.data.webdataset import records

        return Encoded(records(self), self)


class LmdbData(ImageFiles):
    """LMDB as LSUN ships it (Yu et al. 2015): an image file for each key, a database for each class."""

    kind: Literal["lmdb"] = "lmdb"
    root: Path
    """A database, whose images have no labels; or a folder of several, the classes. Of bedroom_train_lmdb the class is
    bedroom, and bedroom_val_lmdb beside it holds test images."""

    def build(self) -> Source:
        """The listed images, decoded when they are read."""
        from udit.data.encoded import Encoded
        from udit.data.lsun import records

        return Encoded(records(self), self)
