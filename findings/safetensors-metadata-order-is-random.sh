#!/usr/bin/env bash
# Two processes that save the same tensors with the same metadata as safetensors write files of different bytes.
#
# Guess:  equal tensors, names and metadata give equal files, so that a file's sha256 tells whether anything changed.
# Seen:   safetensors 0.8.0 writes the entries of the metadata in an order that is drawn anew by every call. With four
#         entries there are 24 files of one content. With one entry, or none, all are equal.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$place/venv/bin/python" - <<'PY'
import json

import numpy as np
from safetensors.numpy import load, save

tensors = {"weight": np.arange(3.0), "bias": np.zeros(2)}
four = {"format": "pt", "step": "100", "config": "small", "data": "digits"}
files = [save(tensors, metadata=four) for _ in range(50)]
orders = {tuple(json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]) for file in files}
print(f"50 saves with four entries of metadata: {len(set(files))} different files, {len(orders)} orders of entries")
print(f"50 saves with one entry: {len({save(tensors, metadata={'step': '100'}) for _ in range(50)})} different files")
assert all((load(file)["weight"] == tensors["weight"]).all() for file in files)
assert len({save(tensors, metadata={"step": "100"}) for _ in range(50)}) == 1
assert len(set(files)) == len(orders) > 1, "mended: remove this file"
PY
