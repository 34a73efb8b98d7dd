#!/usr/bin/env bash
# A process that is killed while safetensors saves leaves a hidden file of the full size beside the target.
#
# Guess:  save_file writes its target in place, so a killed process leaves a torn target and nothing else.
# Seen:   safetensors 0.8.0 writes `.tmp` and six letters in the target's folder and renames it. The target is never torn,
#         but the hidden file stays after a kill, once for each, as large as the weights; nothing removes it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
mkdir "$place/folder"
"$place/venv/bin/python" - "$place/folder" <<'PY'
import os
import re
import signal
import subprocess
import sys
import time

import safetensors

folder = sys.argv[1]
save = f"""
import numpy as np
from safetensors.numpy import save_file
while True:
    save_file({{"a": np.zeros(20_000_000, np.float32)}}, {folder + "/x.safetensors"!r})
"""
left: set[str] = set()
for _ in range(20):
    child = subprocess.Popen([sys.executable, "-c", save])
    while not any(name.startswith(".tmp") and name not in left for name in os.listdir(folder)):
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = {name for name in os.listdir(folder) if name.startswith(".tmp")}
    if left:
        break
print("safetensors", safetensors.__version__, "left:", {name: os.path.getsize(f"{folder}/{name}") for name in left})
assert left and all(re.fullmatch(r"\.tmp\w{6}", name) for name in left), "nothing is left now"
PY
