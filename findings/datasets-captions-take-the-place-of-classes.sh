#!/usr/bin/env bash
# datasets' imagefolder: a metadata.jsonl with captions makes the class labels go.
#
# Guess:  a folder of one subfolder a class has a column "label"; a metadata.jsonl beside it adds its columns to that.
# Seen:   datasets 5.2.0 leaves out the labels as soon as there is a metadata file, in silence; drop_labels=False does
#         not bring them back, and drop_metadata=True drops the captions as well, so that no option reads what was read
#         before.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pillow==12.3.0 numpy==2.4.6
cd "$place"
HF_HOME="$place/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import json
from pathlib import Path

from datasets import load_dataset
from PIL import Image

for name in ("cat", "dog"):
    Path("images", name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(f"images/{name}/0.png")
columns = {}
for given in ("classes", "classes and captions"):
    columns[given] = load_dataset("imagefolder", data_dir="images", split="train").column_names
    print(f"{given}: {columns[given]}")
    rows = [json.dumps({"file_name": f"{name}/0.png", "text": f"a {name}"}) for name in ("cat", "dog")]
    Path("images/metadata.jsonl").write_text("\n".join(rows))
for options in ({"drop_labels": False}, {"drop_metadata": True}):
    found = load_dataset("imagefolder", data_dir="images", split="train", **options).column_names
    print(f"{options}: {found}")
    assert "label" not in found, "mended: remove this file"
assert columns["classes"] == ["image", "label"]
assert columns["classes and captions"] == ["image", "text"], "mended: remove this file"
PY
