#!/usr/bin/env bash
# wandb.Image casts floats to bytes: an image in [0, 1] is logged as black, and -1 as white.
#
# Guess:  arrays and tensors of floats in [0, 1], or in [-1, 1], are spread over the 256 levels, as torchvision's
#         save_image and TensorBoard's add_image do with [0, 1], or they are refused.
# Seen:   wandb 0.31.0 truncates each value to 8 bits, of NumPy's arrays and torch's tensors alike: 0.99 becomes 0, 1
#         becomes 1 and, on x86, -1 becomes 255. The log then holds black images, or inverted ones, and no warning.
#         Bytes stay as they are.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check wandb==0.31.0 numpy==2.4.6 pillow==12.3.0 torch==2.14.1
WANDB_MODE=offline WANDB_SILENT=true "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
import wandb

row = np.array([-1, -0.5, 0, 0.5, 0.99, 1], np.float32)
image = np.broadcast_to(row[None, :, None], (4, 6, 3)).copy()
for name, value in (("NumPy", image), ("torch", torch.from_numpy(image).permute(2, 0, 1))):
    seen = np.asarray(wandb.Image(value).image)[0, :, 0].tolist()
    print(f"{name}: {row.tolist()} -> {seen}")
    assert seen == [255, 0, 0, 0, 0, 1], "mended: remove this file"
levels = (np.abs(image) * 255).astype(np.uint8)
assert (np.asarray(wandb.Image(levels).image) == levels).all()
PY
