"""Configs of data sets, and their union; free of torch. ``describe.py`` reads what a data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.data.archive_config import DatasetJsonData, LmdbData, WebDatasetData
from udit.data.base_config import DataInfo, ImageFiles, Share, Side, SplitData

if TYPE_CHECKING:
    from udit.data.sources import Source

__all__ = ["DataInfo", "DatasetJsonData", "ImageFiles", "LmdbData", "Share", "Side", "SplitData", "WebDatasetData"]


class DigitsData(SplitData):
    """scikit-learn's handwritten digits: 1,797 real grey images of 8x8, 10 classes (UCI, Alpaydin & Kaynak 1998)."""

    kind: Literal["digits"] = "digits"
    judge_share: Share = 0.35
    test_share: Share | None = 0.15

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.sources import digits

        return digits()


class TwoDigitsData(SplitData):
    """Canvases of two of scikit-learn's digits with a caption, e.g. "a three above a seven".

    On 16x16 both are of their own 8x8; on 24x24 one is small, 8x8, the other large, 16x16, and captions name sizes:
    "a small one left of a nine". One lies above or left of the other. Training sees 80 of the 100 ordered pairs of
    digits, and each digit in each place; canvases of the other 20 are the test images, of digits that the training does
    not see either.
    """

    kind: Literal["two-digits"] = "two-digits"
    size: Literal[16, 24] = 16
    """Side of the canvas."""
    count: Annotated[int, Field(ge=100, le=1_000_000)] = 20_000
    """Canvases to train on; there are a tenth as many to test with."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which digits come together, and where."""
    judge_share: Share = 0.0
    test_share: Share | None = None

    @property
    def captioned(self) -> bool:
        """They all have."""
        return True

    def build(self) -> Source:
        """The composed canvases."""
        from udit.data.two_digits import load

        return load(self)


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


class FieldsData(SplitData):
    """Fields of numbers in one .npz file: ``fields``, floats [N, C, H, W], the states of a simulation in order, say.

    ``trajectory``, whole numbers [N], says which states belong together; without it all do. Rows of ``test_fields`` and
    ``test_trajectory`` are test images (``test_share: null``).
    """

    kind: Literal["fields"] = "fields"
    path: Path
    judge_share: Share = 0.0

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.fields import load

        return load(self)


class FolderData(ImageFiles):
    """Image files (PNG, JPEG, WebP, GIF, TIFF, AVIF, HEIC) in one folder per class, named in sorted order.

    A folder that holds images and no folders is one of images without labels; a model of them is unconditional. A list
    of labels takes the place of class folders.
    """

    kind: Literal["folder"] = "folder"
    root: Path
    """The folder that holds one folder per class, or images without labels."""
    captions: Literal["files", "metadata"] | None = None
    """Texts of the images. files: a .txt beside each one, with one text a line; metadata: metadata.jsonl or
    metadata.csv in root, with file_name and text. Of several texts one is drawn by (seed, position in the run)."""

    @property
    def captioned(self) -> bool:
        """Whether images have texts."""
        return self.captions is not None

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
    """The column of labels; with caption, the images need none."""
    caption: str | None = None
    """The column of texts, strings or lists of strings; None where the images have none."""
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
        if self.streaming and (self.buckets or self.crops > 1):
            raise ValueError("buckets or crops are given and streaming keeps one crop; set streaming to false")
        if self.streaming and self.deep:
            raise ValueError("deep is true and streaming keeps 8 bits; set streaming to false")
        if self.streaming and self.caption is not None:
            raise ValueError("caption is given and streaming keeps images alone; set streaming to false")
        if self.streaming and self.verify == "headers":
            raise ValueError("verify is 'headers' and streaming decodes every image as it is read; leave verify out")
        return self

    @property
    def captioned(self) -> bool:
        """Whether images have texts."""
        return self.caption is not None

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits that are read, the test split last."""
        return (self.split,) if self.test_split is None else (self.split, self.test_split)

    def build(self) -> Source:
        """The loaded or streamed images."""
        from udit.data.encoded import Encoded
        from udit.data.hub import Rows, streamed

        return streamed(self) if self.streaming else Encoded(Rows(self), self)


class MovingDigitsData(SplitData):
    """Clips of two real handwritten digits that bounce within a square; a class for each of the 55 pairs."""

    kind: Literal["moving-digits"] = "moving-digits"
    clips: PositiveInt = 11000
    """How many there are, the classes in turn."""
    frames: PositiveInt = 8
    """Of a clip."""
    size: Annotated[int, Field(ge=18, le=4096)] = 24
    """Side of the square in pixels; a digit has 8."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides digits, places and speeds; another one gives other clips."""
    judge_share: Share = 0
    test_share: Share | None = 0.1

    def build(self) -> Source:
        """The clips, drawn when they are read."""
        from udit.data.moving import MovingDigits

        return MovingDigits(self)


class ClipFolderData(SplitData):
    """Clips (GIF, MP4, folders of numbered frames) in one folder per class, or without labels in one folder."""

    kind: Literal["clips"] = "clips"
    root: Path
    """The folder that holds one folder per class, or clips without labels."""
    frames: PositiveInt = 16
    """The first so many frames of each clip; a shorter clip is an error."""
    every: PositiveInt = 1
    """Takes every N-th frame."""
    size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Side of the square that ADM's centre crop cuts of every frame."""
    channels: Literal[1, 3] = 3
    """3 is RGB, 1 grey."""
    flip: bool = False
    """Mirrors half of the training clips left to right, chosen by (seed, position in the run)."""

    @property
    def mirrored(self) -> bool:
        """Whether half of the training clips are mirrored left to right."""
        return self.flip

    def build(self) -> Source:
        """The listed clips, decoded when they are read."""
        from udit.data.clip_folder import ClipFolder

        return ClipFolder(self)


DataConfig = Annotated[
    DigitsData
    | TwoDigitsData
    | FashionMnistData
    | IdxData
    | NpzData
    | FieldsData
    | FolderData
    | DatasetJsonData
    | WebDatasetData
    | LmdbData
    | HubData
    | MovingDigitsData
    | ClipFolderData,
    Field(discriminator="kind"),
]
