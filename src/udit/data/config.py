"""Configs of data sets: where images come from; free of torch. ``describe.py`` reads what a data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.data.condition_config import AnyCondition
from udit.spec.base import Spec

if TYPE_CHECKING:
    from udit.data.sources import Source

Share = Annotated[float, Field(ge=0, lt=1)]


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
    """Images and labels in one .npz file: images and labels, arr_0 and arr_1, or MedMNIST's or Keras' names."""

    kind: Literal["npz"] = "npz"
    path: Path
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


class ImageFiles(SplitData):
    """What data sets of image files of any size have in common."""

    size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Side of the square that ADM's centre crop cuts."""
    channels: Literal[1, 3] = 3
    """3 is RGB, 1 grey."""
    bits: Annotated[int, Field(ge=8, le=16)] = 16
    """Depth of grey in files of 16 bits: 12 where a camera or scanner has put 12 bits into them. Files of 8 bits, and
    those of colour, are read as they are."""
    flip: bool = True
    """Mirrors half of the training images left to right, chosen by (seed, position in the run)."""
    verify: Literal["full", "headers"] = "full"
    """How images are checked before the first step where they need more than 1 GB of memory decoded (smaller data sets
    are decoded and kept): decode each one once and not again while the files do not change, or read headers only."""

    @property
    def mirrored(self) -> bool:
        """Whether half of the training images are mirrored left to right."""
        return self.flip


class FolderData(ImageFiles):
    """Image files (PNG, JPEG, WebP, GIF) in one folder per class; classes are the folders' names in sorted order.

    A folder that holds images and no folders is one of images without labels; a model of them is unconditional.
    """

    kind: Literal["folder"] = "folder"
    root: Path
    """The folder that holds one folder per class, or images without labels."""

    def build(self) -> Source:
        """The listed images, decoded when they are read."""
        from udit.data.folder import ImageFolder

        return ImageFolder(self.root, self.size, self.channels, self.verify, self.bits)


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
        if self.streaming and self.verify == "headers":
            raise ValueError("verify is 'headers' and streaming decodes every image as it is read; leave verify out")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits that are read, the test split last."""
        return (self.split,) if self.test_split is None else (self.split, self.test_split)

    def build(self) -> Source:
        """The loaded or streamed images."""
        from udit.data.hub import Rows, streamed

        return streamed(self) if self.streaming else Rows(self)


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
    | FashionMnistData
    | IdxData
    | NpzData
    | FieldsData
    | FolderData
    | HubData
    | MovingDigitsData
    | ClipFolderData,
    Field(discriminator="kind"),
]
