"""What a data set holds, read without decoding an image: size, channels and class names; free of torch."""

from __future__ import annotations

from udit.data.config import (
    ClipFolderData,
    DataConfig,
    DataInfo,
    DatasetJsonData,
    DigitsData,
    FieldsData,
    FolderData,
    HubData,
    IdxFiles,
    LmdbData,
    MovingDigitsData,
    NpzData,
    TwoDigitsData,
    WebDatasetData,
)
from udit.errors import UserError


def describe(data: DataConfig) -> DataInfo:
    """What the rest of a run needs to know about its data.

    Nothing is read of digits; headers and labels of IDX and .npz files; names in a folder, an LMDB or a zip, and lists
    of labels; headers and labels in tar files; the description of a data set of the hub.

    Raises:
        UserError: there is no such data set, or it is damaged.
    """
    match data:
        case DigitsData():
            return DataInfo(channels=1, height=8, width=8, id2label=tuple("0123456789"))
        case TwoDigitsData():
            side = data.size
            return DataInfo(channels=1, height=side, width=side, id2label=(), labelled=False, captioned=True)
        case IdxFiles():
            from udit.data import idx

            return idx.describe(data)
        case NpzData():
            from udit.data import npz

            return npz.describe(data)
        case FieldsData():
            from udit.data import fields

            return fields.describe(data)
        case FolderData():
            from udit.data import folder

            return folder.describe(data)
        case MovingDigitsData():
            from udit.data import moving

            return moving.describe(data)
        case ClipFolderData():
            from udit.data import clip_folder

            return clip_folder.describe(data)
        case DatasetJsonData():
            from udit.data import dataset_json

            return dataset_json.describe(data)
        case WebDatasetData():
            from udit.data import webdataset

            return webdataset.describe(data)
        case LmdbData():
            from udit.data import lsun

            return lsun.describe(data)
        case HubData():
            from udit.data import hub

            return hub.describe(data)


def described(data: DataConfig, absent: bool) -> DataInfo:
    """As ``describe``; of a folder that may be ``absent``, what its config says."""
    try:
        return describe(data)
    except UserError:
        if not absent or not isinstance(data, FolderData):
            raise
        height, width = data.shape
        return DataInfo(channels=data.channels, height=height, width=width, id2label=(), captioned=data.captioned)
