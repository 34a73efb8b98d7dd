#!/usr/bin/env bash
# datasets' "webdataset" builder decides from the first five samples which fields exist and drops all others.
#
# Guess:  ten samples in a tar, captions (.txt) from the seventh on: a column txt that is None for the first six.
# Seen:   datasets 5.2.0 gives no column txt at all, without a warning. With captions on the first seven and none on the
#         last three, the column is there and None where they are missing. A data set that is captioned in part thus
#         trains with or without text depending on the order within its first shard.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
cd "$place"
HF_HUB_OFFLINE=1 HF_HOME="$place/home" venv/bin/python - <<'PY'
import io
import tarfile

import datasets
from PIL import Image

datasets.disable_progress_bars()


def shard(name: str, captioned: range) -> datasets.Dataset:
    with tarfile.open(name, "w") as tar:
        for index in range(10):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (index, 0, 0)).save(picture, "PNG")
            members = [(f"{index:03}.png", picture.getvalue())]
            if index in captioned:
                members.append((f"{index:03}.txt", b"a caption"))
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return datasets.load_dataset("webdataset", data_files={"train": name}, split="train", cache_dir="cache")


late, early = shard("late.tar", range(6, 10)), shard("early.tar", range(7))
print("datasets", datasets.__version__)
print("captions on samples 6-9:", late.column_names)
print("captions on samples 0-6:", early.column_names, early["txt"][:])
assert "txt" not in late.column_names and len(late) == 10, "late fields are kept now"
assert [caption is None for caption in early["txt"]] == [False] * 7 + [True] * 3
PY
