#!/usr/bin/env bash
# datasets' Image(mode="RGB"), and torchvision's loader alike, turn 16-bit greyscale images white.
#
# Guess:  a 16-bit PNG read as RGB keeps its upper 8 bits: 65,535 becomes 255, and 32,768 becomes 128.
# Seen:   datasets 5.2.0 leaves it to Pillow 12.3.0, whose conversion clips: every value above 255, which is 99.6 % of
#         them, becomes 255. Nothing is said. Divide by 257 first, or read the file as what it is.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pillow==12.3.0 numpy==2.4.6
mkdir "$place/images"
HF_HUB_OFFLINE=1 HF_HOME="$place/home" "$place/venv/bin/python" - "$place/images" 2> /dev/null <<'PY'
import sys

import numpy as np
from datasets import Image, load_dataset
from PIL import Image as Pillow

ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
Pillow.fromarray(ramp).save(f"{sys.argv[1]}/ramp.png")
images = load_dataset("imagefolder", data_dir=sys.argv[1], split="train").cast_column("image", Image(mode="RGB"))
found = np.asarray(images[0]["image"])[..., 0]
print(f"of 256 grey values from black to white, {(found == 255).sum()} are white; the middle one is {found[8, 0]}")
assert (found == 255).sum() == 255, "mended: remove this file"
PY
