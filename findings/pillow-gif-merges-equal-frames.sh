#!/usr/bin/env bash
# Pillow writes fewer GIF frames than it is given where two neighbours are equal, and rounds their duration to 1/100 s.
#
# Guess:  eight frames saved with save_all are eight frames when read, of the 33 ms that were asked for (30 a second).
# Seen:   Pillow 13.0.0 writes seven; the merged one lasts twice as long, and 33 ms became 30. Animated WebP and PNG merge
#         as well. No warning. A clip with a still moment comes back shorter than the network that made it expects, so a
#         reader of clips has to expand frames by their duration, and frames that must be counted belong in .npz or MP4.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0
cd "$place"
venv/bin/python - <<'PY'
import PIL
from PIL import Image

values = [0, 20, 40, 40, 60, 80, 100, 120]
frames = [Image.new("RGB", (16, 16), (v, v, v)) for v in values]
found = {}
for suffix in ("gif", "webp", "png"):
    frames[0].save(f"clip.{suffix}", save_all=True, append_images=frames[1:], duration=33)
    with Image.open(f"clip.{suffix}") as clip:
        durations = []
        for index in range(clip.n_frames):
            clip.seek(index)
            clip.load()
            durations.append(clip.info["duration"])
        found[suffix] = durations
print("Pillow", PIL.__version__, "wrote 8 frames of 33 ms; read:", found)
assert found["gif"] == [30, 30, 60, 30, 30, 30, 30], "Pillow keeps equal frames or durations now"
assert len(found["webp"]) == len(found["png"]) == 7, "Pillow keeps equal frames now"
PY
