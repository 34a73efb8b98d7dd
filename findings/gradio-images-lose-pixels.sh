#!/usr/bin/env bash
# gradio's Image and Gallery hand out lossy WebP: what a visitor saves is not what was computed.
#
# Guess:  gr.Image and gr.Gallery show an array or a Pillow image as PNG, or as lossless WebP, so that a saved file has
#         the computed pixels.
# Seen:   gradio 6.31.0 encodes both as WebP at Pillow's default quality. In a grid of sixteen of scikit-learn's digits
#         seven of ten values are others, by up to 16 of 255 levels. format="png" keeps them.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check gradio==6.31.0 numpy==2.4.6 pillow==12.3.0 \
  scikit-learn==1.9.1
GRADIO_ANALYTICS_ENABLED=False "$place/venv/bin/python" -W ignore - <<'PY'
import gradio as gr
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = (load_digits().images[:16] * 255 / 16).astype(np.uint8)
small = np.concatenate([np.concatenate(list(row), 1) for row in digits.reshape(4, 4, 8, 8)])
grid = np.stack([np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC))] * 3, -1)
handed_out = {
    "Image": gr.Image().postprocess(grid).path,
    "Gallery": gr.Gallery().postprocess([grid]).root[0].image.path,
    "Image(format='png')": gr.Image(format="png").postprocess(grid).path,
}
for name, path in handed_out.items():
    read = np.asarray(Image.open(path).convert("RGB")).astype(int)
    off = np.abs(read - grid)
    print(f"{name}: .{path.rsplit('.', 1)[1]}, {(off > 0).mean():.0%} of the values differ, by up to {off.max()}")
    if "png" in name:
        assert off.max() == 0
    else:
        assert path.endswith(".webp") and off.max() > 5, "mended: remove this file"
PY
