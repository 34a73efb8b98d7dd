#!/usr/bin/env bash
# torchrun refuses a program's option that begins like several of its own, though it stands behind the program's name.
#
# Guess:  whatever follows the script's or module's name is the program's: torchrun ... -m udit eval RUN --n 40.
# Seen:   torch 2.14.1 (2.13.0 alike): "ambiguous option: --n could match --nnodes, --nproc-per-node, ...". argparse
#         sorts all words into options and arguments before the remainder is taken. Behind a -- they are left alone.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
echo 'import sys; print("got", sys.argv[1:])' > "$place/program.py"
run() { OMP_NUM_THREADS=1 "$place/venv/bin/python" -m torch.distributed.run --standalone "$place/program.py" "$@" 2>&1; }
run --steps 2 | grep -F "got ['--steps', '2']"
run -- --n 40 | grep -F "got ['--n', '40']"
if run --n 40 > "$place/said"; then
  echo "it leaves a program's options alone now" && exit 1
fi
grep -F "ambiguous option: --n could match --nnodes" "$place/said"
