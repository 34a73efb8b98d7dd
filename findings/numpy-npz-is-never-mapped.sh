#!/usr/bin/env bash
# np.load(..., mmap_mode="r") reads the arrays of an .npz whole, although they lie in it uncompressed.
#
# Guess:  samples in ADM's form (one array arr_0 of 50,000 images in an uncompressed .npz) can be mapped, so that
#         looking at ten of them reads ten; or mmap_mode is refused for an .npz.
# Seen:   NumPy 2.4.6 takes mmap_mode and ignores it for an .npz: one image costs the memory of all. Of an .npy it
#         gives a memmap.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import tracemalloc

import numpy as np

images = np.zeros((5000, 64, 64, 3), np.uint8)
np.savez("images.npz", images)
np.save("images.npy", images)
del images
kept = {}
for name in ("images.npz", "images.npy"):
    tracemalloc.start()
    found = np.load(name, mmap_mode="r")
    array = found["arr_0"] if name.endswith("npz") else found
    array[:10].sum()
    kept[name] = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"{name}: {type(array).__name__}, {kept[name]:.1f} MiB for ten of 5,000 images")
assert kept["images.npz"] > 50 and kept["images.npy"] < 1, "mended: remove this file"
PY
