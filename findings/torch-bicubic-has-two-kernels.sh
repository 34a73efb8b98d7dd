#!/usr/bin/env bash
# antialias=True changes torch's bicubic enlarging, which has nothing to filter: the kernel is another one.
#
# Guess:  antialias matters where an image is made smaller; enlarged by two, F.interpolate gives the same image with
#         and without it, as it does in bilinear mode.
# Seen:   torch 2.14.1's bicubic kernel has a = -0.75 without antialias (OpenCV's) and a = -0.5 with it (Pillow's).
#         Enlarged by two, an image of noise in [0, 1] differs by more than ten of 255 levels; Pillow agrees with
#         antialias=True.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 pillow==12.3.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
pillow = torch.from_numpy(np.asarray(Image.fromarray(x[0, 0].numpy()).resize((32, 32), Image.Resampling.BICUBIC)))
for mode in ("bilinear", "bicubic"):
    plain, filtered = (F.interpolate(x, scale_factor=2, mode=mode, antialias=on) for on in (False, True))
    apart = float((plain - filtered).abs().max()) * 255
    print(f"{mode}: with and without antialias {apart:.2f} of 255 levels apart")
    if mode == "bilinear":
        assert apart < 0.01
    else:
        from_pillow = float((filtered - pillow).abs().max()) * 255
        print(f"bicubic: with antialias {from_pillow:.2f} levels from Pillow's")
        assert apart > 10 and from_pillow < 0.01, "mended: remove this file"
PY
