"""Configs of where pictures come from, free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.errors import UserError
from udit.spec.base import Spec

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


class SplitData(Spec):
    """What all kinds of data say: which share of each class is kept from the generator."""

    judge_share: Share = 0.2
    """Trains the classifier that judges samples; the generator never sees it."""
    test_share: Share | None = 0.1
    """Seen by neither: validation loss, real-to-real distance, memorisation check. None takes the pictures that the
    data set itself keeps for testing, and judge_share counts among the others."""

    @model_validator(mode="after")
    def _check_shares(self) -> SplitData:
        if self.judge_share + (self.test_share or 0) >= 1:
            raise ValueError(
                f"judge_share {self.judge_share:g} and test_share {self.test_share:g} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self


class DigitsData(SplitData):
    """scikit-learn's handwritten digits: 1,797 real grey images of 8x8, 10 classes (UCI, Alpaydin & Kaynak 1998)."""

    kind: Literal["digits"] = "digits"
    judge_share: Share = 0.35
    test_share: Share | None = 0.15

    def info(self) -> DataInfo:
        """Known without loading anything."""
        return DataInfo(channels=1, height=8, width=8, id2label=tuple("0123456789"))

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.sources import digits

        return digits()


class _Idx(SplitData):
    root: Path
    """The folder of the files."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty numbers them, as MNIST's digits want it."""
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pads pictures with black, evenly, to this side; None leaves them as they are."""
    test_share: Share | None = None

    def info(self) -> DataInfo:
        """From the files' headers and labels, where size and classes are not given.

        Raises:
            UserError: files that are missing or are no IDX.
        """
        from udit.data.idx import count_classes, shape_of

        height, width = (self.size, self.size) if self.size else shape_of(self.folder())
        names = self.classes or tuple(str(label) for label in range(count_classes(self.folder())))
        return DataInfo(channels=1, height=height, width=width, id2label=names)

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.idx import idx_files

        return idx_files(self.folder(), len(self.info().id2label), self.size)

    def folder(self) -> Path:
        """Where the files are."""
        return self.root.expanduser()


class IdxData(_Idx):
    """IDX files of grey pictures as MNIST ships them: train-images-idx3-ubyte and the like, plain or gzipped."""

    kind: Literal["idx"] = "idx"


class FashionMnistData(_Idx):
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): 70,000 grey pictures of garments, 28x28, 10 classes."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"
    root: Path = Path("/usr/share/datasets/fashion-mnist")
    """Where Debian's package dataset-fashion-mnist puts the files."""
    classes: tuple[str, ...] = (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )

    def folder(self) -> Path:
        """Where the files are; asked for only when they are read, for a latent cache is read without them.

        Raises:
            UserError: the package is not installed.
        """
        if self.root == type(self).model_fields["root"].default and not self.root.is_dir():
            raise UserError(
                f"data.root is {str(self.root)!r} and is not there; run `apt-get install dataset-fashion-mnist` on "
                "Debian or Ubuntu, or give the folder that holds the four files"
            )
        return super().folder()


class NpzData(SplitData):
    """Pictures and labels in one .npz: images and labels, arr_0 and arr_1, or MedMNIST's or Keras' names."""

    kind: Literal["npz"] = "npz"
    path: Path
    classes: tuple[str, ...] = ()
    """Names in label order; empty numbers them."""

    def info(self) -> DataInfo:
        """From the file's headers and labels.

        Raises:
            UserError: no such file, or no such arrays in it.
        """
        from udit.data.npz import describe

        channels, height, width, count = describe(self.path.expanduser())
        names = self.classes or tuple(str(label) for label in range(count))
        return DataInfo(channels=channels, height=height, width=width, id2label=names)

    def build(self) -> Source:
        """The loaded data set."""
        from udit.data.npz import npz_file

        return npz_file(self.path.expanduser(), len(self.classes) or None)


class _Files(SplitData):
    """Picture files of any size."""

    size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Side of the square that ADM's centre crop cuts."""
    channels: Literal[1, 3] = 3
    """3 is RGB, 1 grey."""
    flip: bool = True
    """Mirrors half of the training pictures, by a key of (seed, position in the run)."""
    verify: Literal["full", "headers"] = "full"
    """What is done before the first step to pictures that are too many to keep in memory (1 GB decoded; fewer are
    decoded and kept): decode each once, which is remembered while the files stay as they are, or read headers only."""


class FolderData(_Files):
    """A folder of class folders of pictures (PNG, JPEG, WebP, GIF); classes are the folder names in sorted order."""

    kind: Literal["folder"] = "folder"
    root: Path

    def info(self) -> DataInfo:
        """From the folder's names.

        Raises:
            UserError: missing or empty folder, or an empty class folder.
        """
        from udit.data.folder import class_names

        return DataInfo(
            channels=self.channels, height=self.size, width=self.size, id2label=tuple(class_names(self.root))
        )

    def build(self) -> Source:
        """The listed pictures; decoded when asked for."""
        from udit.data.folder import ImageFolder

        return ImageFolder(self.root, self.size, self.channels, self.verify)


class HubData(_Files):
    """Pictures that Hugging Face `datasets` loads: a hub id, a folder of pictures or parquet files, a .parquet file."""

    kind: Literal["huggingface"] = "huggingface"
    path: str
    """A hub id like uoft-cs/cifar10, or a path."""
    name: str | None = None
    """The configuration, where the data set has several."""
    revision: str | None = None
    """A branch, tag or commit of the hub's; None is the newest."""
    split: str = "train"
    test_split: str | None = None
    """Its pictures are kept for testing, and test_share is null."""
    image: str = "image"
    """The column of pictures."""
    label: str = "label"
    """The column of labels."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty takes the column's own."""
    streaming: bool = False
    """Lets the files of a hub id pass by once and keeps only the squares cut from them, in ~/.cache/udit; training
    starts when all have passed. Otherwise `datasets` downloads the files and keeps them."""

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
            raise ValueError("verify is 'headers' and streaming decodes every picture as it passes; leave verify out")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """All that are read, the one kept for testing last."""
        return (self.split,) if self.test_split is None else (self.split, self.test_split)

    def info(self) -> DataInfo:
        """From the data set's description.

        Raises:
            UserError: no such data set or columns, or labels without names.
        """
        from udit.data.hub import class_names

        return DataInfo(channels=self.channels, height=self.size, width=self.size, id2label=class_names(self))

    def build(self) -> Source:
        """The loaded or streamed pictures."""
        from udit.data.hub import Rows, streamed

        return streamed(self) if self.streaming else Rows(self)


DataConfig = Annotated[
    DigitsData | FashionMnistData | IdxData | NpzData | FolderData | HubData, Field(discriminator="kind")
]
