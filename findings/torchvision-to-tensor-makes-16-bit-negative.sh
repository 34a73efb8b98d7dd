#!/usr/bin/env bash
# torchvision's ToTensor turns the upper half of a 16-bit greyscale image into negative numbers.
#
# Guess:  to_tensor of a 16-bit PNG (Pillow's mode I;16) gives floats in [0, 1], as of every other mode, or uint16.
# Seen:   torchvision 0.29.1 gives int16, unscaled: level 32,768 becomes -32,768 and white -1. v2.ToImage keeps uint16,
#         and v2.ToDtype(float32, scale=True) makes [0, 1] of it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 \
  pillow==12.3.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import io

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional, v2

levels = np.array([[0, 1, 32767, 32768, 65535]], np.uint16)
stream = io.BytesIO()
Image.fromarray(levels).save(stream, "PNG")
image = Image.open(stream)
old = functional.to_tensor(image)
new = v2.ToDtype(torch.float32, scale=True)(v2.ToImage()(image))
print(f"{image.mode}: {levels[0].tolist()} -> to_tensor {old[0, 0].tolist()} ({old.dtype}), v2 {new[0, 0].tolist()}")
assert old[0, 0].tolist() == [0, 1, 32767, -32768, -1], "mended: remove this file"
assert float(new.max()) == 1
PY
