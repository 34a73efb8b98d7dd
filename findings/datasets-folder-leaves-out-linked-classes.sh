#!/usr/bin/env bash
# datasets' folder of images leaves out a class folder that is a symbolic link.
#
# Guess:  load_dataset(FOLDER) reads three class folders, one of which is a link to a folder elsewhere, as three classes.
# Seen:   datasets 5.2.0 gives the two real ones, four rows and the names a and b, without a warning. Links are a usual way
#         to make a subset of a large data set, or to join two disks.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
cd "$place"
HF_HUB_OFFLINE=1 HF_HOME="$place/home" venv/bin/python - <<'PY'
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
for folder in ("pictures/a", "pictures/b", "elsewhere/c"):
    Path(folder).mkdir(parents=True)
    for index in range(2):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(f"{folder}/{index}.png")
Path("pictures/c").symlink_to(Path("elsewhere/c").resolve())
rows = datasets.load_dataset("pictures", split="train")
print("datasets", datasets.__version__, "read", len(rows), "rows of", rows.features["label"].names)
assert len(rows) == 4 and rows.features["label"].names == ["a", "b"], "linked class folders are read now"
PY
