"""Configs of data sets: where images come from; free of torch. ``describe.py`` reads what a data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from udit.errors import UserError
from udit.spec.base import Spec

if TYPE_CHECKING:
    from udit.data.sources import Source

Share = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=1, le=4096)]
"""Pixels."""


class DataInfo(Spec):
    """What the rest of a run needs to know about its data before any image is read."""

    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt
    id2label: tuple[str, ...]
    """Class names in label order."""
    labelled: bool = True
    """Whether images have labels; without, a model of them is unconditional."""
    latents: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """(c, h, w) of the latents, where the data set holds them in place of images."""


class SplitData(Spec):
    """Fields of every data set: which share of each class the generator is not trained on."""

    judge_share: Share = 0.2
    """Trains the classifier that judges samples; the generator never sees it."""
    test_share: Share | None = 0.1
    """Seen by neither: validation loss, real-to-real distance, memorisation check. None takes the data set's own test
    images, and judge_share is a share of the others."""

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


class DigitsData(SplitData):
    """scikit-learn's handwritten digits: 1,797 real grey images of 8x8, 10 classes (UCI, Alpaydin & Kaynak 1998)."""

    kind: Literal["digits"] = "digits"
    judge_share: Share = 0.35
    test_share: Share | None = 0.15

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.sources import digits

        return digits()


class IdxFiles(SplitData):
    """What the data sets in MNIST's file format have in common."""

    root: Path
    """The folder that holds the files."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty uses the labels' numbers, as for MNIST's digits."""
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pads images with black on all sides to this side; None leaves them as they are."""
    test_share: Share | None = None

    INSTALL: ClassVar[str] = ""
    """How to get the files where the default ``root`` does not exist."""

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.idx import load

        return load(self)


class IdxData(IdxFiles):
    """IDX files of grey images as MNIST ships them: train-images-idx3-ubyte and so on, plain or gzipped."""

    kind: Literal["idx"] = "idx"


class FashionMnistData(IdxFiles):
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): 70,000 grey images of garments, 28x28, 10 classes."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"
    root: Path = Path("/usr/share/datasets/fashion-mnist")
    """Where Debian's package dataset-fashion-mnist puts the files."""
    classes: tuple[str, ...] = (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )

    INSTALL: ClassVar[str] = "run `apt-get install dataset-fashion-mnist` on Debian or Ubuntu"


class NpzData(SplitData):
    """Images and labels in .npz files: images and labels, arr_0 and arr_1 as ADM's batches, MedMNIST's or Keras' names.

    A file with images alone has no labels; a model of them is unconditional.
    """

    kind: Literal["npz"] = "npz"
    path: Path
    """A file, or a folder of several, which are read in the order of their names."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty uses the labels' numbers."""

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.npz import load

        return load(self)


class ImageFiles(SplitData):
    """What data sets of image files of any size have in common."""

    size: Side | tuple[Side, Side] = 64
    """Side of the square, or [H, W], that ADM's centre crop cuts."""
    buckets: tuple[tuple[Side, Side], ...] = ()
    """Further shapes [H, W] beside size. An image is cropped to the one whose proportions are nearest to its own, and
    the images of a step are all of one; takes a model of images of any size. Scores and samples are of size."""
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
        return self.replace(deep=False, buckets=())

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of an image; with buckets, of samples."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """All shapes that images may have."""
        return (self.shape, *self.buckets)

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        for i, (height, width) in enumerate(self.shapes):
            if (height, width) in self.shapes[:i]:
                raise ValueError(f"buckets hold {height}x{width}, which is there already; give each shape once")
        return self


class FolderData(ImageFiles):
    """Image files (PNG, JPEG, WebP, GIF, TIFF, AVIF, HEIC) in one folder per class, named in sorted order.

    A folder that holds images and no folders is one of images without labels; a model of them is unconditional. A list
    of labels takes the place of class folders.
    """

    kind: Literal["folder"] = "folder"
    root: Path
    """The folder that holds one folder per class, or images without labels."""
    label_by: Literal["folder", "path", "none"] = "folder"
    """Where folders lie in folders: folder takes the first for the class, path the whole path below root, none takes
    images of any depth without labels."""
    labels: Path | None = None
    """A CSV, TSV or JSONL file of images' paths below root, and their labels; then folders are no classes."""
    file_column: str | None = None
    """Of that list; None takes one that is called file_name, filename, file, image, path or id."""
    label_column: str | None = None
    """Of that list; None takes one that is called label, class, class_name, category or target."""
    classes: tuple[str, ...] = ()
    """Names in the order of numbers that such a list has as labels; of names in it, those that may occur."""

    @model_validator(mode="after")
    def _check_list(self) -> FolderData:
        for key in ("file_column", "label_column", "classes"):
            if self.labels is None and getattr(self, key):
                raise ValueError(f"{key} is of a list of labels; name the list with data.labels=FILE, or leave it out")
        if self.labels is not None and self.label_by != "folder":
            raise ValueError(f"label_by is {self.label_by} and labels names a list of labels; leave one of them out")
        return self

    def build(self) -> Source:
        """The listed images, decoded when they are read."""
        from udit.data.encoded import Encoded
        from udit.data.folder import records

        return Encoded(records(self), self)


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
        if self.encoded and (self.buckets or self.deep):
            raise ValueError("holds is moments, and buckets and deep are of images; leave them out")
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
    classes: tuple[str, ...] = ()
    """Names in label order; empty uses the labels' numbers, or their names in sorted order."""

    @model_validator(mode="before")
    @classmethod
    def _test_on_its_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("test_root") is not None:
            return {"test_share": None, **values}
        return values

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


class HubData(ImageFiles):
    """Images that Hugging Face `datasets` loads: a hub id, a folder of images or parquet files, or a .parquet file."""

    kind: Literal["huggingface"] = "huggingface"
    path: str
    """A hub id like uoft-cs/cifar10, or a path."""
    name: str | None = None
    """The configuration, where the data set has several."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None is the newest."""
    split: str = "train"
    test_split: str | None = None
    """Its images are the test images, and test_share is null."""
    image: str = "image"
    """The column of images."""
    label: str = "label"
    """The column of labels."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty takes the column's own."""
    streaming: bool = False
    """Reads the files of a hub id once without storing them and keeps only the cropped images, in ~/.cache/udit;
    training starts when all are read. Otherwise `datasets` downloads the files and keeps them."""

    @model_validator(mode="before")
    @classmethod
    def _test_on_its_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("test_split") is not None:
            return {"test_share": None, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> HubData:
        if self.test_split is not None and self.test_share is not None:
            raise ValueError(
                f"test_share is {self.test_share:g} and test_split {self.test_split!r}; leave one of them out"
            )
        if self.streaming and self.buckets:
            raise ValueError("buckets are given and streaming keeps images of one shape; set streaming to false")
        if self.streaming and self.deep:
            raise ValueError("deep is true and streaming keeps 8 bits; set streaming to false")
        if self.streaming and self.verify == "headers":
            raise ValueError("verify is 'headers' and streaming decodes every image as it is read; leave verify out")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits that are read, the test split last."""
        return (self.split,) if self.test_split is None else (self.split, self.test_split)

    def build(self) -> Source:
        """The loaded or streamed images."""
        from udit.data.encoded import Encoded
        from udit.data.hub import Rows, streamed

        return streamed(self) if self.streaming else Encoded(Rows(self), self)


DataConfig = Annotated[
    DigitsData
    | FashionMnistData
    | IdxData
    | NpzData
    | FolderData
    | DatasetJsonData
    | WebDatasetData
    | LmdbData
    | HubData,
    Field(discriminator="kind"),
]
