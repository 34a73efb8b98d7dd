"""What a data set holds, read without decoding an image: size, channels and class names; free of torch."""

from __future__ import annotations

from udit.data.config import (
    ClipFolderData,
    DataConfig,
    DataInfo,
    DigitsData,
    FieldsData,
    FolderData,
    HubData,
    IdxFiles,
    MovingDigitsData,
    NpzData,
)


def describe(data: DataConfig) -> DataInfo:
    """What the rest of a run needs to know about its data.

    Nothing is read of digits; headers and labels of IDX and .npz files; names in a folder; the description of a data
    set of the hub.

    Raises:
        UserError: there is no such data set, or it is damaged.
    """
    match data:
        case DigitsData():
            return DataInfo(channels=1, height=8, width=8, id2label=tuple("0123456789"))
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
        case HubData():
            from udit.data import hub

            return hub.describe(data)
