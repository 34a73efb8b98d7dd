#!/usr/bin/env bash
# torch-fidelity 0.4.0. One would guess: feature_extractor_internal_dtype="float64", which its documentation offers "to
# improve numerical precision", computes in float64. It happens: the table behind it maps the word to torch.float32, so
# that nothing changes and nothing is said. Set the attribute to torch.float64 and call .double() yourself.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.14.1" "torch-fidelity==0.4.0"
"$folder/venv/bin/python" - <<'EOF'
import torch
from torch_fidelity.helpers import text_to_dtype

found = text_to_dtype("float64", "float32")
print("float64 is", found)
assert found is torch.float32, "mended: remove this file"
EOF
