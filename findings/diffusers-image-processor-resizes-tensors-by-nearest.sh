#!/usr/bin/env bash
# diffusers' VaeImageProcessor resizes a Pillow image with Lanczos and the same image as a tensor by its nearest pixels.
#
# Guess:  preprocess gives the same input to the VAE, up to rounding, whether it gets a Pillow image, an array or a
#         tensor; resample="lanczos" is one setting for all.
# Seen:   in diffusers 0.42.1 the setting holds for Pillow images alone. Arrays and tensors are resized by
#         interpolate's default, the nearest pixel without antialiasing: a 64x64 image of stripes one pixel wide is
#         even grey at 16x16 from Pillow, and white from a tensor.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 pillow==12.3.0 \
  diffusers==0.42.1
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

stripes = np.zeros((64, 64, 3), np.uint8)
stripes[:, ::2] = 255
given = {
    "Pillow": Image.fromarray(stripes),
    "array": (stripes / 255).astype(np.float32)[None],
    "tensor": torch.from_numpy(stripes / 255).float().permute(2, 0, 1)[None],
}
processor = VaeImageProcessor(resample="lanczos")
found = {name: processor.preprocess(image, height=16, width=16) for name, image in given.items()}
for name, x in found.items():
    print(f"{name}: {x.unique().numel()} values from {x.min():.2f} to {x.max():.2f}, mean {x.mean():.2f}")
assert float(found["Pillow"].abs().max()) < 0.2
assert all(float(found[name].abs().min()) == 1 for name in ("array", "tensor")), "mended: remove this file"
PY
