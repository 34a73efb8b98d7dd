#!/usr/bin/env bash
# Pillow's AVIF at quality 100 changes most pixels, and no setting of it that is documented is lossless for RGB images.
#
# Guess:  quality=100, with subsampling="4:4:4", writes an image that is read back as it was.
# Seen:   Pillow 12.3.0 converts to YCbCr of 8 bits, which no quality undoes: of a photograph 8 to 9 of 10 pixels come
#         back changed, by up to 3 or 4 of 255 levels. For a data set of RGB images take PNG, or WebP with lossless=True.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check pillow==12.3.0 numpy==2.4.6 scikit-learn==1.9.1
"$place/venv/bin/python" - <<'PY'
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

image = load_sample_images().images[1][100:164, 100:164]


def changed(kind, **words):
    """Share of pixels that come back changed, and the largest change."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **words)
    off = np.abs(np.asarray(Image.open(stream).convert("RGB")).astype(int) - image)
    print(f"{kind} {words}: {(off.max(-1) > 0).mean():.1%} of pixels, by up to {off.max()}")
    return off.max()


assert changed("WEBP", lossless=True) == 0
assert changed("AVIF", quality=100) > 0, "mended: remove this file"
assert changed("AVIF", quality=100, subsampling="4:4:4") > 0, "mended: remove this file"
PY
