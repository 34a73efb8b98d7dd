#!/usr/bin/env bash
# PyAV: a grey clip written losslessly as H.264 with pix_fmt "gray" comes back with other levels.
#
# Guess:  libx264 with qp=0 is lossless, so that a ramp of all 256 grey levels comes back as it was; or differs by one
#         level, where its colours are converted.
# Seen:   with PyAV 18.1.0 the levels go into the file from 0 to 255, and the file is read as yuv420p, whose black is 16
#         and white 235: 0 to 16 come back as 0, 235 to 255 as 255, others up to 20 levels off. With yuv444p or yuv420p
#         the error is one level, and 220 of the 256 levels remain. ffv1 in Matroska returns all.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$place"
venv/bin/python - <<'PY'
import av
import numpy as np

ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
found = {}
for codec, pixels in (("libx264", "gray"), ("libx264", "yuv444p"), ("ffv1", "gray")):
    with av.open("ramp.mkv", "w") as file:
        stream = file.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 256, 64, pixels
        stream.options = {"qp": "0"} if codec == "libx264" else {}
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="gray")))
        file.mux(stream.encode())
    with av.open("ramp.mkv") as file:
        frame = next(file.decode(video=0))
    again = frame.to_ndarray(format="gray")
    found[codec, pixels] = int(np.abs(again.astype(int) - ramp).max()), len(np.unique(again))
    print(f"{codec} {pixels}, read as {frame.format.name}: {found[codec, pixels]} (largest error, levels left)")
assert found["libx264", "gray"] == (20, 220), "changed: remove this file"
assert found["libx264", "yuv444p"] == (1, 220), "changed: remove this file"
assert found["ffv1", "gray"] == (0, 256)
PY
